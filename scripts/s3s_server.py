"""Serves S3 from a directory of its own on a free port of loopback, with s3s-fs: for tests.

Usage: s3s_server.py S3S_FS BUCKET...
S3S_FS is the path of s3s-fs. Makes the buckets, prints the endpoint, and serves until it is killed, or until its standard input ends if
that is a pipe. It verifies signatures by the access key AKIDTEST, whose secret is "hush".
"""
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections import deque

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with tempfile.TemporaryDirectory() as directory:
    for bucket in sys.argv[2:]:
        os.mkdir(os.path.join(directory, bucket))
    keys = ["--access-key", "AKIDTEST", "--secret-key", "hush"]
    command = [sys.argv[1], "--host", "127.0.0.1", "--port", "0", *keys, directory]
    environ = {**os.environ, "RUST_LOG": "s3s_fs=info"}
    server = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        endpoint = next(line for line in server.stdout if "running at http://" in line).split()[-1].rstrip(",")
        # What it logs later is dropped: a full pipe would stop it.
        threading.Thread(target=deque, args=(server.stdout, 0), daemon=True).start()
        print(endpoint, flush=True)
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            sys.stdin.read()
        else:
            signal.pause()
    finally:
        server.kill()
        server.wait()
