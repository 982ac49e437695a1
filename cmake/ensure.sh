#!/bin/sh
# ensure.sh DIRECTORY: makes DIRECTORY/bin/cmake and DIRECTORY/bin/ctest, of CMake 3.21 or later: links to those of this
# machine, else the Debian package (as root), else the one for Python in an environment of its own.
set -eu
directory=$1

new_enough() {
    command -v cmake >/dev/null && printf '3.21\n%s\n' "$(cmake --version | sed -n 's/.*version //p')" | sort -VC
}

if ! new_enough && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "CMake is missing: installing the package cmake"
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends cmake make; } ||
        echo "the package could not be installed"
fi
if new_enough; then
    mkdir -p "$directory/bin"
    ln -sf "$(command -v cmake)" "$(command -v ctest)" "$directory/bin/"
else
    echo "CMake is missing: installing it for Python into $directory"
    python3 -m venv "$directory"
    "$directory/bin/pip" install --quiet 'cmake>=3.21'
fi
