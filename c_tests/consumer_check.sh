#!/bin/sh
# consumer_check.sh CMAKE BUILD SOURCE TARGET_DIR: programs outside the tree use kvkeep as a user does: installed, by
# find_package (shared and static) and by pkg-config, with the build tree out of reach and the prefix moved after the
# install; and as fetched sources.
set -eu
cmake=$1 build=$2 source=$3 target_dir=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
consumer=$source/c_tests/consumer

"$cmake" --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/prefix"
if grep -rIlE "$build|$work" "$work/prefix" --include='*.cmake' --include='*.pc' --include='*.h'; then
    echo "the installed package names its build tree" >&2
    exit 1
fi

for kind in shared static; do
    "$cmake" -S "$consumer" -B "$work/$kind" -DCMAKE_PREFIX_PATH="$work/prefix" -DKIND="$kind" >/dev/null
    "$cmake" --build "$work/$kind" >/dev/null
    "$work/$kind/consumer"
done
if ldd "$work/static/consumer" | grep kvkeep; then
    echo "the static consumer needs the shared library" >&2
    exit 1
fi
readelf -d "$work/shared/consumer" | grep 'NEEDED.*libkvkeep\.so\.[0-9]*\.[0-9]*\]'

if "$cmake" -S "$consumer" -B "$work/newer" -DCMAKE_PREFIX_PATH="$work/prefix" -DKIND=shared \
    -DWANTED=0.99 >/dev/null 2>&1; then
    echo "another minor version was accepted" >&2
    exit 1
fi

if command -v pkg-config >/dev/null; then
    PKG_CONFIG_PATH=$(dirname "$(find "$work/prefix" -name kvkeep.pc)")
    export PKG_CONFIG_PATH
    lib=$(pkg-config --variable=libdir kvkeep)
    # shellcheck disable=SC2046 # the flags are words
    "${CC:-cc}" "$consumer/consumer.c" -o "$work/by_pkg_config" $(pkg-config --cflags --libs kvkeep)
    LD_LIBRARY_PATH="$lib" "$work/by_pkg_config"
    # shellcheck disable=SC2046
    "${CC:-cc}" "$consumer/consumer.c" -o "$work/by_pkg_config_static" $(pkg-config --cflags kvkeep) \
        "$lib/libkvkeep.a" $(pkg-config --static --libs-only-l kvkeep | sed 's/-lkvkeep//')
    "$work/by_pkg_config_static"
else
    "$source/scripts/skipped.sh" "consumers that use pkg-config" "it is not installed"
fi
test -x "$work/prefix/bin/kvkeep"

"$cmake" -S "$consumer" -B "$work/fetched" -DKIND=fetched -DKVKEEP_SOURCE="$source" \
    -DKVKEEP_TARGET_DIR="$target_dir" >/dev/null
"$cmake" --build "$work/fetched" >/dev/null 2>&1
"$work/fetched/consumer"
