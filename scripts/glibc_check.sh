#!/bin/sh
# glibc_check.sh LIBRARY.a VERSION: the code of the static library asks for no symbol that the C library of VERSION does not have, so
# that a wheel for it can be made. Zig, which knows the symbols of each version, comes from PyPI; where it cannot be had, the check is
# reported as skipped.
set -eu
library=$(realpath "$1") glibc=$2
cd "$(dirname "$0")/.."
. scripts/tools.sh
need python-zig ziglang 0.17.1 || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
scripts/link_shared.sh "$program" "$library" "$(uname -m)" "$glibc" "$work/libkvkeep.so"
c_tests/symbols_check.sh "$work/libkvkeep.so" include/kvkeep.h
echo "the library can be linked with glibc $glibc"
