#!/bin/sh
# glibc_check.sh LIBRARY.a VERSION: the code of the static library asks for no symbol that the C library of VERSION does not have, so
# that a wheel for it can be made. Zig, which knows the symbols of each version, comes from PyPI; where it cannot be had, the check is
# reported as skipped.
set -eu
cd "$(dirname "$0")/.."
. scripts/tools.sh
library=$1 glibc=$2
need python-zig ziglang 0.17.1 || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
machine=$(uname -m)
"$program" cc -target "$machine-linux-gnu.$glibc" -shared -o "$work/libkvkeep.so" -Wl,-z,defs -Wl,--strip-all -Wl,--gc-sections \
    -Wl,--version-script,cmake/kvkeep.map -Wl,--whole-archive "$library" -Wl,--no-whole-archive -lunwind -lm -lpthread -ldl
echo "the library can be linked with glibc $glibc"
