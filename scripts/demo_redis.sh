#!/bin/sh
# demo_redis.sh QUICKSTART DIRECTORY: two processes that share neither memory nor a disk, but a Redis server on loopback.
set -eu
quickstart=$1 directory=$2
mkdir -p "$directory"
program=$(scripts/redis.sh)
# A directory of its own, since a socket's path may have some hundred bytes only.
place=$(mktemp -d)
server=
finish() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" || true; fi
    rm -rf "$place"
}
trap finish EXIT

# A port that nobody uses: the server says so if somebody does.
for port in 16379 16380 16381 26379 26380; do
    "$program" --port $port --bind 127.0.0.1 --save "" --appendonly no --dir "$place" \
        --maxmemory 256mb --maxmemory-policy allkeys-lru >"$directory/redis.log" 2>&1 &
    server=$!
    while kill -0 "$server" 2>/dev/null; do
        grep -qs 'eady to accept connections' "$directory/redis.log" && break 2
        sleep 0.05
    done
    server=
done
[ -n "$server" ] || { cat "$directory/redis.log"; exit 1; }
url=redis://127.0.0.1:$port

# Runs a process and shows the lines of its output that match; a pipe would hide that it failed.
show() {
    lines=$1
    shift
    "$@" >"$directory/output"
    grep -E "$lines" "$directory/output" | sed 's/^/     /'
}

echo "1. $("$program" --version | cut -d ' ' -f 1-3) listens at $url"
echo "2. One process computes and stores 16 chunks of 256 KiB"
show 'computed' "$quickstart" "$url"
echo "3. Another process, with an L1 of its own, finds them on the server"
show . "$quickstart" "$url" again
echo "4. The server is stopped: a process that opens it is told so"
kill "$server" && wait "$server" || true
server=
! "$quickstart" "$url" again 2>"$directory/output" || exit 1
sed 's/^/     /' "$directory/output"

cat <<END

Shown: a prefix that one process stored is loaded by another over a server; every byte was compared.
Next: docs/storage.md has the parameters of redis:// URLs, and says when to put which server behind kvkeep.
END
