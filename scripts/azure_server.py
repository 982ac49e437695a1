"""Serves Azure Blob Storage from memory on a free port of loopback, with Azurite: for tests.

Usage: azure_server.py AZURITE CONTAINER...
AZURITE is the path of azurite-blob. Makes the containers, prints a connection string, and serves until it is killed, or until its
standard input ends if that is a pipe. The account and its key are those that Azurite has for tests.
"""
import base64
import hashlib
import hmac
import os
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.request
from email.utils import formatdate

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def make_container(endpoint, name):
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    signed = "".join(f"{header}:{value}\n" for header, value in headers.items())
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    text = f"PUT{chr(10) * 12}{signed}{resource}"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request).close()


signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with tempfile.TemporaryDirectory() as directory:
    arguments = ["--blobPort", "0", "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    server = subprocess.Popen([sys.argv[1], *arguments], cwd=directory, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line for line in server.stdout if "listens on http" in line).split()[-1]
        endpoint = f"{address}/{ACCOUNT}"
        for container in sys.argv[2:]:
            make_container(endpoint, container)
        print(f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint}", flush=True)
        if stat.S_ISFIFO(os.fstat(0).st_mode):
            sys.stdin.read()
        else:
            signal.pause()
    finally:
        server.kill()
        server.wait()
