"""Serves S3 from memory on a free port of loopback, with moto: for tests and demonstrations.

Usage: $(scripts/moto.sh) scripts/s3_server.py BUCKET...
Makes the buckets, prints the endpoint, and serves until it is killed, or until its standard input ends if that is a pipe.
"""
import logging
import os
import signal
import stat
import sys
import urllib.request

from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").disabled = True
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
endpoint = "http://%s:%d" % server.get_host_and_port()
for bucket in sys.argv[1:]:
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", b"", method="PUT")).close()
print(endpoint, flush=True)
if stat.S_ISFIFO(os.fstat(0).st_mode):
    sys.stdin.read()
else:
    signal.pause()
