#!/bin/sh
# symbols_check.sh LIBRARY HEADER: the library exports the header's functions and nothing else.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
nm -D --defined-only "$1" | awk '{ sub(/@.*/, "", $3); print $3 }' | sort >"$work/exported"
# A function's name is followed by its bracket; that of a callback type is inside one.
"${CC:-cc}" -E -P "$2" | grep -oE '\bkvkeep_[a-z0-9_]+\(' | tr -d '(' | sort -u >"$work/declared"
diff "$work/declared" "$work/exported"
echo "$(wc -l <"$work/declared") functions, each declared and exported"
