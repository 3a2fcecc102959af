#!/usr/bin/env bash
# Verifies the units and their exposure score (at most 2.0). Needs systemd-analyze, not a running systemd.
#   check.sh [PATH-OF-THE-BINARY]      stands in for /usr/local/bin/palisade where that is not installed
set -euo pipefail
binary=$(realpath "${1:-/usr/local/bin/palisade}")
cd "$(dirname "$0")"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
sed "s|/usr/local/bin/palisade|$binary|" palisade.service >"$dir/palisade.service"
cp palisade.socket "$dir/"
systemd-analyze verify "$dir/palisade.service" "$dir/palisade.socket"
systemd-analyze security --offline=true --threshold=20 "$dir/palisade.service" | tail -n 1
