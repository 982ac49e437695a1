#!/usr/bin/env bash
# Proves transfers to and from a real GPU and measures them: bench/gpu.sh [DEVICE]. Builds what it needs where cargo and a C compiler
# are (and nothing more with KVKEEP_GPU_BUILD_ONLY=1); elsewhere it takes build/gpu as a build left it.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-0}
layouts=${KVKEEP_GPU_LAYOUTS:-1000}
l1_gib=${KVKEEP_GPU_L1_GIB:-8}
built=build/gpu
mkdir -p "$built"
if command -v cargo >/dev/null && command -v "${CC:-cc}" >/dev/null; then
    cargo build --release --locked --lib
    soname=libkvkeep.so.$(sed -n 's/^version = "\([0-9]*\.[0-9]*\)\..*/\1/p' Cargo.toml | head -n 1)
    cp "${CARGO_TARGET_DIR:-target}/release/libkvkeep.so" "$built/$soname"
    "${CC:-cc}" -std=gnu11 -O2 -Wall -Wextra -Werror -Iinclude -o "$built/gpu" bench/gpu.c "$built/$soname" -ldl -pthread \
        -Wl,-rpath,'$ORIGIN'
fi
if [ "${KVKEEP_GPU_BUILD_ONLY:-}" ]; then exit; fi
"$built/gpu" check "$layouts" "$device"
"$built/gpu" table "$l1_gib" "$device" | tee "$built/table.md"
printf '\nMeasured on %s by bench/gpu.sh; %s layouts came back bit by bit first.\n' "$(date -u +%F)" "$layouts" >>"$built/table.md"
echo "the table is in $built/table.md: append it to bench/RESULTS.md"
