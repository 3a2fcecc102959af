#!/usr/bin/env bash
# Finds Puma, or installs Debian's. Prints the command to start it with.
#   puma.sh           prints `puma` or `bundle exec puma`; installs Debian's package when there is neither
#   puma.sh --check   only says what it found
set -euo pipefail

found() {
  if command -v puma >/dev/null 2>&1; then
    echo "puma"
  elif command -v bundle >/dev/null 2>&1 && bundle exec puma --version >/dev/null 2>&1; then
    echo "bundle exec puma"
  else
    return 1
  fi
}

if command=$(found); then
  if [ "${1:-}" = "--check" ]; then
    echo "Puma: $($command --version) ($command)"
  else
    echo "$command"
  fi
  exit 0
fi

if [ "${1:-}" = "--check" ]; then
  echo "Puma: none; the tests that need one will be skipped and say so (apt-get install puma ruby-rack)"
  exit 0
fi
if ! command -v apt-get >/dev/null 2>&1; then
  echo "There is no Puma on the PATH and no apt-get to install one: install Ruby and Puma, then try again." >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then
    echo "There is no Puma on the PATH. As root: apt-get install puma ruby-rack" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "Installing Debian's packages puma and ruby-rack${as_root[*]:+ with ${as_root[*]}} ..." >&2
"${as_root[@]}" apt-get update -qq >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends puma ruby-rack >&2
found
