#!/bin/sh
# moto.sh: prints the path of a Python that has moto, an S3 service for tests. pip installs it into build/moto where it is not there.
# Fails where it cannot be had.
set -eu
cd "$(dirname "$0")/.."
version=5.2.5
python=$PWD/build/moto/$version/bin/python
mkdir -p build/moto
# One at a time: tests start side by side.
exec 9>build/moto/lock
flock 9
if [ ! -e "build/moto/$version/whole" ]; then
    echo "installing moto $version into build/moto" >&2
    rm -rf "build/moto/$version"
    python3 -m venv "build/moto/$version" >&2
    timeout 300 "$python" -m pip install --quiet --disable-pip-version-check "moto[server,s3]==$version" >&2
    touch "build/moto/$version/whole"
fi
echo "$python"
