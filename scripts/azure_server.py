"""Serves Azure Blob Storage from memory on a free port of loopback, with Azurite: for tests.

Usage: azure_server.py AZURITE CONTAINER...
AZURITE is the path of azurite-blob. Makes the containers, prints a connection string, and serves until it is killed, or until its
standard input ends if that is a pipe. The account and its key are those that Azurite has for tests.
"""
import base64
import hashlib
import hmac
import sys
import tempfile
import urllib.request
from email.utils import formatdate

from server_process import serve, started

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


arguments = ["--blobPort", "0", "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
with tempfile.TemporaryDirectory() as directory, started([sys.argv[1], *arguments], "listens on http", cwd=directory) as address:
    endpoint = f"{address}/{ACCOUNT}"
    for container in sys.argv[2:]:
        make_container(endpoint, container)
    print(f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint}", flush=True)
    serve()
