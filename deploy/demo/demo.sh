#!/usr/bin/env bash
# `make demo`: a small Rack app on real Puma, Palisade in front of it, loopback only. Ends with Ctrl-C.
#   demo.sh PATH-OF-THE-BINARY
set -euo pipefail

binary=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
http=${DEMO_HTTP_PORT:-8080}
https=${DEMO_HTTPS_PORT:-8443}
dir=$(mktemp -d "${TMPDIR:-/tmp}/palisade-demo.XXXXXX")
puma_pid="" palisade_pid=""

# shellcheck disable=SC2329
stop() {
  trap - EXIT INT TERM
  for pid in $palisade_pid $puma_pid; do
    kill -TERM "$pid" 2>/dev/null || true
  done
  for pid in $palisade_pid $puma_pid; do
    for _ in $(seq 50); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$dir"
}
trap stop EXIT
trap 'echo; exit 0' INT TERM

fail() {
  echo "$1" >&2
  for log in "$dir"/*.log; do
    if [ -s "$log" ]; then
      echo "--- $(basename "$log")" >&2
      tail -n 20 "$log" >&2
    fi
  done
  exit 1
}

# Waits up to 20 s for a command to succeed, as long as the process lives.
await() {
  local what=$1 pid=$2
  shift 2
  for _ in $(seq 200); do
    kill -0 "$pid" 2>/dev/null || fail "$what ended by itself."
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  fail "$what did not become ready within 20 s."
}

# shellcheck disable=SC2329
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }

puma=$("$here/puma.sh")
mkdir "$dir/sockets" "$dir/spool"

# A certificate for the occasion. The key is readable by its owner only; Palisade refuses any other.
if ! command -v openssl >/dev/null 2>&1; then
  fail "openssl is needed to make a certificate: apt-get install openssl"
fi
(umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 7 -subj /CN=localhost \
  -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>"$dir/openssl.log") ||
  fail "openssl could not make a certificate."

sed -e "s|{dir}|$dir|g" -e "s|{http}|$http|g" -e "s|{https}|$https|g" "$here/proxy.toml.in" >"$dir/proxy.toml"

# In process groups of their own: Ctrl-C then reaches only this script, which ends both in order and by their pids.
set -m
# $puma may be several words: bundle exec puma.
# shellcheck disable=SC2086
PALISADE_SOCKETS="$dir/sockets" $puma --config "$here/puma.rb" "$here/config.ru" >"$dir/puma.log" 2>&1 &
puma_pid=$!
await "Puma" "$puma_pid" test -S "$dir/sockets/w1.sock"

"$binary" run --config "$dir/proxy.toml" >"$dir/palisade.log" 2>&1 &
palisade_pid=$!
set +m
await "Palisade" "$palisade_pid" listens "$http"
await "Palisade" "$palisade_pid" listens "$https"

cat <<TEXT

Palisade stands in front of $($puma --version) (2 workers x 5 threads, a unix socket each), on loopback only:

  https://127.0.0.1:$https    HTTP/2 and HTTP/1.1, certificate $dir/cert.pem
  http://127.0.0.1:$http

Try a page, an upload, and an attack that is refused with its reason:

  curl --cacert $dir/cert.pem https://127.0.0.1:$https/
  head -c 20000000 /dev/urandom | curl -T - -X POST http://127.0.0.1:$http/upload
  curl -i -H 'Transfer-Encoding: chunked' -H 'Content-Length: 4' -d 0 http://127.0.0.1:$http/

Access log: $dir/access.log        Ctrl-C stops everything.

TEXT

# Ends when one of the two does, or with Ctrl-C.
wait -n "$puma_pid" "$palisade_pid" || true
fail "One of the two ended by itself."
