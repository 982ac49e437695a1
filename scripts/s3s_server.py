"""Serves S3 from a directory of its own on a free port of loopback, with s3s-fs: for tests.

Usage: s3s_server.py S3S_FS BUCKET...
S3S_FS is the path of s3s-fs. Makes the buckets, prints the endpoint, and serves until it is killed, or until its standard input ends if
that is a pipe. It verifies signatures by the access key AKIDTEST, whose secret is "hush".
"""
import os
import sys
import tempfile

from server_process import serve, started

with tempfile.TemporaryDirectory() as directory:
    for bucket in sys.argv[2:]:
        os.mkdir(os.path.join(directory, bucket))
    keys = ["--access-key", "AKIDTEST", "--secret-key", "hush"]
    command = [sys.argv[1], "--host", "127.0.0.1", "--port", "0", *keys, directory]
    with started(command, "running at http://", env={**os.environ, "RUST_LOG": "s3s_fs=info"}) as endpoint:
        print(endpoint.rstrip(","), flush=True)
        serve()
