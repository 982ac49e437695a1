#!/bin/sh
# demo_daemon.sh KVKEEP QUICKSTART DIRECTORY: two processes, one cache. The lines of docs/daemon.md.
set -eu
kvkeep=$1 quickstart=$2 directory=$3
rm -rf "$directory" && mkdir -p "$directory"
# A socket's path may have some hundred bytes only, and the directory may be deep.
socket=$(mktemp -d)/kvkeep.sock
"$kvkeep" serve --l1 256MiB --l2 "fs://$directory?capacity=1GiB" --socket "$socket" &
daemon=$!
trap 'kill $daemon 2>/dev/null || true; wait $daemon || true; rm -rf "$(dirname "$socket")"' EXIT
"$quickstart" "unix://$socket?wait_ms=60000"
"$quickstart" "unix://$socket" again
"$kvkeep" stat "unix://$socket"
