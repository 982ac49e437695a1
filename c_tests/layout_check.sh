#!/bin/sh
# layout_check.sh PROGRAM GOLDEN: the ABI's structs are laid out as they always were.
set -eu
"$1" | diff "$2" - && echo "the layout is that of $(basename "$2")"
