#!/bin/sh
# demo_s3.sh KVKEEP QUICKSTART DIRECTORY: two nodes that share nothing but a bucket, in forty lines.
set -eu
kvkeep=$1 quickstart=$2 directory=$3
rm -rf "$directory" && mkdir -p "$directory"
# A socket's path may have some hundred bytes only, and the directory may be deep.
sockets=$(mktemp -d)
processes=
finish() {
    for process in $processes; do kill "$process" 2>/dev/null && wait "$process" || true; done
    rm -rf "$sockets"
}
trap finish EXIT

python=$(scripts/moto.sh)
"$python" scripts/s3_server.py kvkeep >"$directory/endpoint" 2>"$directory/server.log" &
processes=$!
while [ ! -s "$directory/endpoint" ]; do
    kill -0 "$processes" || { cat "$directory/server.log" && exit 1; }
    sleep 0.1
done
endpoint=$(cat "$directory/endpoint")
echo "1. An S3 service at $endpoint, and two daemons, each with a memory of its own, over s3://kvkeep/demo"
export AWS_ACCESS_KEY_ID=demo AWS_SECRET_ACCESS_KEY=demo
for node in one two; do
    "$kvkeep" serve --l1 256MiB --l2 "s3://kvkeep/demo?endpoint=$endpoint" --socket "$sockets/$node" 2>"$directory/$node.log" &
    processes="$processes $!"
done

echo "2. A program of node one computes and stores two prompts"
"$quickstart" "unix://$sockets/one?wait_ms=60000" >"$directory/one"
grep -E stored "$directory/one" | sed 's/^/     /'
echo "3. The same program of node two computes nothing: it loads both from the bucket"
"$quickstart" "unix://$sockets/two?wait_ms=60000" again >"$directory/two"
grep -E 'loaded|right' "$directory/two" | sed 's/^/     /'
grep -q '12 loaded: 0 from memory, 12 from below' "$directory/two"
echo "4. What node two counted"
"$kvkeep" stat "unix://$sockets/two" | grep -E ' (loads|loaded_bytes|corruptions) ' | sed 's/^/     /'
