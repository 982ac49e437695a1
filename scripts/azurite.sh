#!/bin/sh
# azurite.sh [install]: prints the path of azurite-blob, an emulator of Azure Blob Storage for tests: that of $KVKEEP_AZURITE, an
# installed one, or the one in build/azurite. `install` has npm put it there first, if there is none: 360 MB, some minutes.
set -eu
for name in ${KVKEEP_AZURITE:-} azurite-blob; do
    if command -v "$name"; then exit; fi
done
cd "$(dirname "$0")/.."
program=$PWD/build/azurite/node_modules/.bin/azurite-blob
if [ "${1:-}" = install ] && [ ! -e build/azurite/whole ]; then
    mkdir -p build/azurite
    npm install --silent --no-fund --no-audit --prefix build/azurite azurite@3.37.0 >&2
    touch build/azurite/whole
fi
if [ ! -e build/azurite/whole ]; then
    echo "no Azurite: install the npm package azurite, or run make test-azure" >&2
    exit 1
fi
echo "$program"
