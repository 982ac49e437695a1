#!/bin/sh
# wheel_check.sh WHEEL GLIBC [AUDITWHEEL]: the programs of a wheel ask for no C library newer than GLIBC, nor for another library that not
# every Linux has (as auditwheel sees it), and carry no symbols. The library exports the header's functions alone. Where the wheel is
# for this machine, it is installed into an environment without kvkeep's sources, and serves there; once more in a bare Debian 11 of
# its own, with Python 3.9 and glibc 2.31, where debootstrap and root are at hand: without them, that is reported as skipped.
set -eu
cd "$(dirname "$0")/.."
wheel=$(realpath "$1") glibc=$2 auditwheel=${3:-}
name=$(basename "$wheel" .whl)
machine=${name##*manylinux_2_??_}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# newest VERSION...: the greatest of them.
newest() { printf '%s\n' "$@" | sort -V | tail -1; }

python3 -m zipfile -e "$wheel" "$work/wheel"
for program in "$work"/wheel/kvkeep/libkvkeep.so "$work"/wheel/kvkeep-*.data/scripts/kvkeep; do
    # shellcheck disable=SC2046 # the versions are words
    needed=$(newest $(grep -aoE 'GLIBC_2(\.[0-9]+)+' "$program" | cut -c7-))
    echo "$(basename "$program"): $(($(wc -c <"$program") >> 10)) KiB, needs glibc $needed"
    if [ "$(newest "$needed" "$glibc")" != "$glibc" ]; then
        echo "$program asks for glibc $needed; $glibc is the newest that it may" && exit 1
    fi
    if readelf -S "$program" | grep -qE '\.symtab|\.debug_info'; then echo "$program has its symbols" && exit 1; fi
done
c_tests/symbols_check.sh "$work/wheel/kvkeep/libkvkeep.so" include/kvkeep.h
cmp include/kvkeep.h "$work/wheel/kvkeep/include/kvkeep.h"
if [ -n "$auditwheel" ]; then
    said=$("$auditwheel" show "$wheel" | tr '\n' ' ' | sed -n 's/.*following platform tag: *"manylinux_\([0-9]*\)_\([0-9]*\)_[a-z].*/\1.\2/p')
    if [ -z "$said" ] || [ "$(newest "$said" "$glibc")" != "$glibc" ]; then
        "$auditwheel" show "$wheel" && exit 1
    fi
    echo "auditwheel: any Linux of glibc $said or later"
fi
if [ "$machine" != "$(uname -m)" ]; then
    scripts/skipped.sh "running $name" "this machine is another"
    exit
fi

# What runs in each place, which has the wheel, the example and nothing else of kvkeep.
cat >"$work/serve.sh" <<'END'
set -eu
cd "$(dirname "$0")"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet --no-index --find-links . kvkeep
venv/bin/python -I quickstart.py "$PWD/objects" >output
venv/bin/python -I quickstart.py "$PWD/objects" again >>output
grep -q '^request 4: 12 of 12 .*8 from memory, 4 from below' output || { cat output && exit 1; }
venv/bin/kvkeep stat "$PWD/objects" >output
venv/bin/kvkeep serve --l1 64MiB --l2 "fs://$PWD/objects?capacity=1GiB" --socket socket 2>log &
daemon=$!
venv/bin/python -I quickstart.py "unix://$PWD/socket?wait_ms=60000" again >output || { cat log && exit 1; }
kill "$daemon" && wait "$daemon"
echo "the wheel serves $(venv/bin/python --version) with $(ldd --version | head -1)"
END
# place FOLDER: lays it out.
place() { mkdir -p "$1" && cp "$wheel" examples/quickstart.py "$work/serve.sh" "$1"; }

place "$work/here"
env -u PYTHONPATH -u KVKEEP_LIBRARY sh "$work/here/serve.sh"

root=build/wheel-debian
if [ "$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then
    scripts/skipped.sh "the wheel in a bare Debian 11" "debootstrap and root are not at hand"
    exit
fi
if [ ! -e "$root/done" ]; then
    echo "debootstrap makes a Debian 11 in $root"
    rm -rf "$root"
    if ! debootstrap --variant=minbase --include=python3,python3-venv bullseye "$root" >build/debootstrap.log 2>&1; then
        scripts/skipped.sh "the wheel in a bare Debian 11" "debootstrap cannot make one: see build/debootstrap.log"
        exit
    fi
    touch "$root/done"
fi
rm -rf "$root/kvkeep"
place "$root/kvkeep"
chroot "$root" env -i PATH=/usr/bin:/bin HOME=/root sh /kvkeep/serve.sh
