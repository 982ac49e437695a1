#!/bin/sh
# demo.sh KVKEEP QUICKSTART DIRECTORY: what kvkeep does, in fifty lines.
set -eu
kvkeep=$1 quickstart=$2 directory=$3
rm -rf "$directory" && mkdir -p "$directory"
# A socket's path may have some hundred bytes only, and the directory may be deep.
socket=$(mktemp -d)/kvkeep.sock
daemon=
finish() {
    if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null && wait "$daemon" || true; fi
    rm -rf "$(dirname "$socket")"
}
trap finish EXIT

# Runs a program and shows the lines of its output that match; a pipe would hide that it failed.
show() {
    lines=$1
    shift
    "$@" >"$directory/output"
    grep -E "$lines" "$directory/output" | sed 's/^/     /'
}

echo "1. One process: the second request finds in memory what the first one stored"
show . "$quickstart" "$directory/one"
echo "2. A later process finds both on disk"
show . "$quickstart" "$directory/one" again
echo "3. A thousand requests of a real trace, every byte compared; and how large L1 should be for them"
trace=examples/data/conversation_slice.jsonl
show '^(requests|blocks asked|prefix hits|wrong bytes|lookup) ' "$kvkeep" replay "$trace" --real
show '( L1  | [GT]iB  |^endless|an L1 of)' "$kvkeep" replay "$trace"
echo "4. A daemon: one process stores, another reads the same memory"
"$kvkeep" serve --l1 256MiB --l2 "fs://$directory/daemon?capacity=1GiB" --socket "$socket" 2>"$directory/log" &
daemon=$!
"$quickstart" "unix://$socket?wait_ms=60000" >"$directory/first"
show loaded "$quickstart" "unix://$socket" again
show ' (l1_objects|read_hits|stores|corruptions) ' "$kvkeep" stat "unix://$socket"

cat <<END

Shown: prefixes that are found in memory, on disk after a restart, and by another process; every byte was compared.
Next: examples/quickstart.c is the program of 1, 2 and 4, and docs/embedding.md leads from it to an engine with pages.
      docs/daemon.md has the commands of 4, and docs/operations.md sizes, systemd and what to watch.
      build/prefix has the library, the header and the kvkeep command; \`make help\` lists the other targets.
END
