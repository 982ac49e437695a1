#!/bin/sh
# symbols_check.sh LIBRARY HEADER: the library exports the header's functions and nothing else, each in the version that the
# header says it is there since.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Versions themselves are absolute symbols.
nm -D --defined-only --with-symbol-versions "$1" | awk '$2 != "A" { print $3 }' | sort >"$work/exported"
awk '/^\/\/\/ Since: / { since = substr($3, 1, length($3) - 1) }
     /^KVKEEP_API$/ { getline; $0 = "KVKEEP_API " $0 }
     /^KVKEEP_API / { name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name); print name "@@KVKEEP_" since }' "$2" |
  sort >"$work/declared"
diff "$work/declared" "$work/exported"
echo "$(wc -l <"$work/declared") functions, each declared, exported and of its version"
