#!/bin/sh
# demo_mooncake.sh LIBRARY PACKAGES: two kvkeep processes that share nothing but a Mooncake store. PACKAGES is a PYTHONPATH with Mooncake.
set -eu
python=${PYTHON:-python3}
export KVKEEP_LIBRARY="$1" PYTHONPATH="$PWD/bindings/python${2:+:$2}"
port=${KVKEEP_DEMO_PORT:-50551}
directory=$(mktemp -d)
master=
finish() {
    if [ -n "$master" ]; then kill "$master" 2>/dev/null && wait "$master" || true; fi
    rm -rf "$directory"
}
trap finish EXIT

echo "1. A Mooncake master on 127.0.0.1:$port"
program=$("$python" -c 'import os, mooncake; print(os.path.join(list(mooncake.__path__)[0], "mooncake_master"))')
chmod +x "$program"
"$program" --rpc_port="$port" --metrics_port=$((port + 1)) >"$directory/master" 2>&1 &
master=$!
"$python" - "$port" <<'END' || { tail "$directory/master"; exit 1; }
import socket, sys, time

until = time.monotonic() + 60
while time.monotonic() < until:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", int(sys.argv[1]))) == 0:
            sys.exit()
    time.sleep(0.1)
sys.exit("the master does not answer")
END
echo "2. Decode asks, then prefill stores: another process finds it, in Mooncake alone"
"$python" examples/prefill_decode.py "mooncake:127.0.0.1:$port" 2>"$directory/log" | sed 's/^/     /' >"$directory/output"
cat "$directory/output"
grep -q 'the decode side hit' "$directory/output" || { tail "$directory/log"; exit 1; }
cat <<END

Shown: a hit in another process that asked before the bytes were there, and a clean miss. No memory and no disk were shared.
Next: docs/storage.md, "Mooncake", has the options; examples/prefill_decode.py is the program.
END
