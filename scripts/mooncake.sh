#!/bin/sh
# mooncake.sh DIRECTORY: prints a PYTHONPATH with Mooncake's client and master in it, put into DIRECTORY by pip where there is none;
# fails where it cannot be had.
set -eu
python=${PYTHON:-python3}
if "$python" -c 'import mooncake.store' 2>/dev/null; then
    exit 0
fi
if [ ! -e "$1/done" ]; then
    "$python" -m pip install --quiet --disable-pip-version-check --target "$1" 'mooncake-transfer-engine-non-cuda==0.3.13.post1' >&2
    touch "$1/done"
fi
PYTHONPATH=$1 "$python" -c 'import mooncake.store' >&2
echo "$1"
