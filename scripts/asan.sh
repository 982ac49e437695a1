#!/bin/sh
# Tests under AddressSanitizer: use of memory after it was given back, and leaks. Needs the nightly toolchain.
# KVKEEP_SOAK_SECONDS makes the stress test last.
set -eu
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Zsanitizer=address${RUSTFLAGS:+ $RUSTFLAGS}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/asan"
for name in ${*:-promises:: stress::}; do
    cargo +nightly test --target "$target" --test integration --test campaigns "$name" -- --nocapture
done
