#!/bin/sh
# The stress test, or another campaign that is named, under ThreadSanitizer: data races in the library, with the standard library instrumented too. Needs the
# nightly toolchain and its rust-src component. KVKEEP_SOAK_SECONDS makes it last.
set -eu
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Zsanitizer=thread${RUSTFLAGS:+ $RUSTFLAGS}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/tsan"
exec cargo +nightly test -Zbuild-std --target "$target" --test campaigns "${1:-stress}::" -- --nocapture
