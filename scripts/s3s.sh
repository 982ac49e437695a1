#!/bin/sh
# s3s.sh [install]: prints the path of s3s-fs, a second S3 service for tests, beside moto: that of $KVKEEP_S3S, an installed one, or
# the one in build/tools. `install` has cargo put it there first, if there is none: some minutes.
set -eu
version=0.14.1
for name in ${KVKEEP_S3S:-} s3s-fs; do
    if command -v "$name"; then exit; fi
done
cd "$(dirname "$0")/.."
program=$PWD/build/tools/bin/s3s-fs
is_there() { "$program" --version 2>/dev/null | grep -qF "$version"; }
if [ "${1:-}" = install ] && ! is_there; then
    echo "installing s3s-fs $version into build/tools with cargo: this takes some minutes" >&2
    # Optimised a little: it hashes all that it takes.
    CARGO_TARGET_DIR=$PWD/build/tools/target CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install s3s-fs --version "$version" --locked --debug --quiet --features binary --root build/tools >&2
    rm -rf build/tools/target
fi
if ! is_there; then
    echo "no s3s-fs: install the crate s3s-fs with its feature binary, or run make test-s3s" >&2
    exit 1
fi
echo "$program"
