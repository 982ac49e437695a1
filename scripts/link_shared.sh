#!/bin/sh
# link_shared.sh ZIG LIBRARY.a MACHINE GLIBC INTO: links INTO, the shared library that cmake/CMakeLists.txt makes of the static one (the
# header's functions alone, each in its version), but with the symbols of the C library GLIBC and without symbols for debuggers. Ends
# with an error where the code asks for a symbol that this C library does not have.
set -eu
cd "$(dirname "$0")/.."
zig=$1 library=$2 machine=$3 glibc=$4 into=$5
soname=libkvkeep.so.$(sed -n 's/^version = "\([0-9]*\.[0-9]*\)\..*/\1/p' Cargo.toml)
"$zig" cc -target "$machine-linux-gnu.$glibc" -shared -o "$into" -Wl,-soname,"$soname" -Wl,--version-script,cmake/kvkeep.map \
    -Wl,--whole-archive "$library" -Wl,--no-whole-archive -Wl,--gc-sections -Wl,--strip-all -Wl,-z,defs -Wl,-z,relro,-z,now \
    -lunwind -lm -lpthread -ldl
