#!/bin/sh
# toolchains.sh: checks that kvkeep compiles without its features, with the oldest Rust that Cargo.toml promises, and for ARM. rustup
# fetches what is missing; what cannot be had is reported as skipped.
set -eu
cd "$(dirname "$0")/.."
oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
arm=aarch64-unknown-linux-gnu
# They have other flags and targets than the tests, whose builds they leave alone.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/toolchains"

# Its tests of URLs are those that a missing feature changes.
cargo test --locked --quiet --no-default-features --lib l2::registry
echo "it compiles without its features, and a URL that needs one is refused"

if ! command -v rustup >/dev/null; then
    scripts/skipped.sh "Rust $oldest and $arm" "there is no rustup to fetch them"
    exit
fi
if rustup run "$oldest" cargo --version >/dev/null 2>&1 ||
    timeout 300 rustup toolchain install "$oldest" --profile minimal --no-self-update; then
    rustup run "$oldest" cargo check --locked --quiet
    echo "Rust $oldest compiles it"
else
    scripts/skipped.sh "Rust $oldest, the oldest that Cargo.toml promises" "rustup cannot fetch it"
fi
if rustup target list --installed | grep -qx "$arm" || timeout 300 rustup target add "$arm"; then
    # A crate compiles C for it, of which a check needs no more than that a compiler takes it.
    if command -v aarch64-linux-gnu-gcc >/dev/null; then
        cargo check --locked --quiet --target "$arm"
    else
        CC_aarch64_unknown_linux_gnu=true AR_aarch64_unknown_linux_gnu=true cargo check --locked --quiet --target "$arm"
    fi
    echo "it compiles for $arm"
else
    scripts/skipped.sh "$arm" "rustup cannot fetch its standard library"
fi
