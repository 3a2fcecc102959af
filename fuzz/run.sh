#!/usr/bin/env bash
# Builds every fuzz target and runs each for FUZZ_SECONDS (default 20), starting from its committed seeds.
# Works on the stable compiler: RUSTC_BOOTSTRAP gives libFuzzer's coverage, and no sanitizer is used (there is no unsafe code).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-20}
export RUSTC_BOOTSTRAP=1

if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "cargo-fuzz is not installed: cargo install cargo-fuzz --locked" >&2
  exit 1
fi
targets=$(cargo fuzz list)
if [ -z "$targets" ]; then
  echo "There is no fuzz target." >&2
  exit 1
fi

cargo fuzz build --sanitizer none
failed=0
for target in $targets; do
  echo "== $target, $seconds s"
  mkdir -p "fuzz/corpus/$target"
  folders=("fuzz/corpus/$target")
  if [ -d "fuzz/seeds/$target" ]; then
    folders+=("fuzz/seeds/$target")
  fi
  if ! cargo fuzz run --sanitizer none "$target" "${folders[@]}" -- -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 >"fuzz/$target.log" 2>&1; then
    echo "FAILED: $target"
    tail -n 40 "fuzz/$target.log"
    failed=$((failed + 1))
  else
    grep -E 'number_of_executed_units|Done ' "fuzz/$target.log" || true
  fi
  rm -f "fuzz/$target.log"
done
if [ "$failed" -gt 0 ]; then
  echo "$failed fuzz targets failed" >&2
  exit 1
fi
