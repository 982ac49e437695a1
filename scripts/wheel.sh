#!/bin/sh
# wheel.sh INTO [MACHINE]...: a wheel in INTO for each MACHINE, which is x86_64 or aarch64 (without one: both), that installs on any
# Linux of glibc 2.28 or later. cargo-zigbuild and Zig, which link with the symbols of an old C library, and auditwheel come from PyPI.
# Ends with an error where a wheel needs more than it says, or does not work where it can be tried: see wheel_check.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
glibc=2.28
mkdir -p "$1" && into=$(realpath "$1")
shift
# Its programs have another linker than the others', which it leaves alone.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/wheel"
# Flags for the machine's own linker would not do. A backtrace without names of functions is the price of a tenth of the size.
unset RUSTFLAGS
export CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_STRIP=symbols

need cargo-zigbuild cargo-zigbuild 0.24.1 || exit 1
zigbuild=$program
need python-zig ziglang 0.17.1 || exit 1
zig=$program
need auditwheel auditwheel 6.8.2 || exit 1
auditwheel=$program
export PATH="$(dirname "$zigbuild"):$PATH"

[ $# -gt 0 ] || set -- x86_64 aarch64
for machine; do
    target=$machine-unknown-linux-gnu
    if ! [ -d "$(rustc --print target-libdir --target "$target")" ] && ! timeout 300 rustup target add "$target"; then
        scripts/skipped.sh "the wheel for $machine" "rustup cannot fetch the standard library of $target"
        continue
    fi
    rm -f "$into"/kvkeep-*_"$machine".whl
    cargo-zigbuild zigbuild --release --locked --lib --bin kvkeep --target "$target.$glibc"
    built=$CARGO_TARGET_DIR/$target/release
    scripts/link_shared.sh "$zig" "$built/libkvkeep.a" "$machine" "$glibc" "$built/libkvkeep.so"
    KVKEEP_LIBRARY="$built/libkvkeep.so" python3 bindings/python/build_wheel.py "$into"
    scripts/wheel_check.sh "$into"/kvkeep-*_"$machine".whl "$glibc" "$auditwheel"
done
