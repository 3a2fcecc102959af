#!/usr/bin/env bash
# Tries the image for real: a podman pod with Debian's Puma and Palisade over unix sockets in a shared volume, both with a
# read-only root, without capabilities, as user 65532. As root, on Debian:
#   apt-get install --no-install-recommends podman buildah runc catatonit debootstrap
#   docker/try.sh [STATIC-BINARY]      builds one if none is given
# The root folder of Puma's image is kept in PALISADE_TRY_DIR (default: a folder in /var/tmp) for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

export CONTAINERS_CONF=$PWD/docker/containers.conf
keep=${PALISADE_TRY_DIR:-/var/tmp/palisade-try}
port=${PALISADE_TRY_PORT:-18082}
target=$(uname -m)-unknown-linux-gnu
pod=palisade-try
work=$(mktemp -d)
mkdir -p "$keep"

cleanup() {
  podman pod rm --force "$pod" >/dev/null 2>&1 || true
  podman volume rm --force "$pod-sockets" "$pod-spool" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT

echo "== the static binary"
binary=${1:-}
if [ -z "$binary" ]; then
  make static
  binary=${CARGO_TARGET_DIR:-target}/$target/release/palisade
fi
ldd "$binary" 2>&1 | grep -q "statically linked" || { echo "$binary is not static" >&2; exit 1; }

echo "== the image of Palisade"
cp docker/Containerfile "$work/"
cp "$binary" "$work/palisade"
buildah bud --quiet --format docker --isolation chroot -f "$work/Containerfile" -t localhost/palisade:try "$work" >/dev/null

echo "== the image of Debian's Puma"
if ! podman image exists localhost/puma:try; then
  if [ ! -x "$keep/root/usr/bin/puma" ]; then
    debootstrap --variant=minbase --include=puma,ruby-rack bookworm "$keep/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$keep/debootstrap.log" ||
      { tail -n 5 "$keep/debootstrap.log" >&2; exit 1; }
  fi
  tar -C "$keep/root" --numeric-owner -c . |
    podman import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' --change 'USER 65532:65532' - localhost/puma:try >/dev/null
fi

echo "== the pod"
cleanup
work=$(mktemp -d)
mkdir -p "$work/app/puma" "$work/app/demo" "$work/etc"
cp deploy/demo/puma.rb deploy/demo/config.ru "$work/app/demo/"
cp deploy/puma/palisade.rb "$work/app/puma/"
cp docker/proxy.toml "$work/etc/"
chmod -R a+rX "$work"
hard=(--read-only --read-only-tmpfs=false --cap-drop=all --security-opt=no-new-privileges --user 65532:65532 --pids-limit 64)
podman pod create --name "$pod" -p "127.0.0.1:$port:8080" >/dev/null
podman volume create "$pod-sockets" >/dev/null
podman volume create "$pod-spool" >/dev/null
for volume in "$pod-sockets" "$pod-spool"; do
  chown 65532:65532 "$(podman volume inspect --format '{{.Mountpoint}}' "$volume")"
done
# Puma writes bodies above 112 KiB to a file: it needs a place for it.
podman run -d --pod "$pod" --name "$pod-puma" "${hard[@]}" --tmpfs /tmp:mode=1777,size=64m --memory 256m -e PALISADE_SOCKETS=/run/palisade -e HOME=/app \
  -v "$pod-sockets:/run/palisade" -v "$work/app:/app:ro" localhost/puma:try puma -C /app/demo/puma.rb /app/demo/config.ru >/dev/null
podman run -d --pod "$pod" --name "$pod-proxy" "${hard[@]}" --memory 64m --cpus 0.5 \
  -v "$pod-sockets:/run/palisade" -v "$pod-spool:/spool" -v "$work/etc:/etc/palisade:ro" localhost/palisade:try >/dev/null

answer=""
for _ in $(seq 100); do
  if answer=$(curl -fsS --max-time 2 -H 'Host: localhost' "http://127.0.0.1:$port/" 2>/dev/null); then break; fi
  sleep 0.2
done
if ! grep -q "REQUEST_METHOD = GET" <<<"$answer"; then
  echo "no answer of Puma through the pod's port" >&2
  podman logs "$pod-puma" >&2
  podman logs "$pod-proxy" >&2
  exit 1
fi
echo "$answer"
sum=$(head -c 5000000 /dev/zero | sha256sum | cut -d' ' -f1)
head -c 5000000 /dev/zero | curl -fsS -H 'Host: localhost' -T - -X POST "http://127.0.0.1:$port/upload" | tee "$work/upload"
grep -q "$sum" "$work/upload"

echo "== inside"
podman exec "$pod-proxy" /palisade healthcheck && echo "healthcheck: ok"
pid=$(podman inspect --format '{{.State.Pid}}' "$pod-proxy")
grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp|VmRSS):' "/proc/$pid/status"
podman images --format '{{.Repository}} {{.Size}}' localhost/palisade:try

echo "== the end"
start=$(date +%s%N)
podman stop --time 30 "$pod-proxy" >/dev/null
echo "stopped in $((($(date +%s%N) - start) / 1000000)) ms, exit code $(podman inspect --format '{{.State.ExitCode}}' "$pod-proxy")"
[ "$(podman inspect --format '{{.State.ExitCode}}' "$pod-proxy")" = 0 ]
