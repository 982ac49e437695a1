"""Serves Google Cloud Storage from memory on a free port of loopback, with moto: for tests.

Usage: $(scripts/moto.sh) scripts/gcs_server.py BUCKET...
The XML API of Google Cloud Storage is that of S3 with other headers. moto speaks S3; the headers are translated here. A request needs
a token, which is not verified. Makes the buckets, prints the endpoint, and serves until its standard input ends.
"""
import logging
import sys
import threading
import urllib.request

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SIGNED = "AWS4-HMAC-SHA256 Credential=gcs/20261130/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
NO_TOKEN = b"<Error><Code>AuthenticationRequired</Code></Error>"
moto = DomainDispatcherApplication(create_backend_app)


def google(environ, start_response):
    """Answers one request, as a WSGI application."""
    if not environ.get("HTTP_AUTHORIZATION", "").startswith("Bearer "):
        start_response("401 Unauthorized", [("Content-Type", "application/xml"), ("Content-Length", str(len(NO_TOKEN)))])
        return [NO_TOKEN]
    environ["HTTP_AUTHORIZATION"] = SIGNED
    source = environ.pop("HTTP_X_GOOG_COPY_SOURCE", None)
    if source:
        environ["HTTP_X_AMZ_COPY_SOURCE"] = source
    # Generation 0 is that of an object which is not there.
    if environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0":
        environ["HTTP_IF_NONE_MATCH"] = "*"

    def start(status, headers, exc_info=None):
        return start_response(status, [*headers, ("x-goog-generation", "1")], exc_info)

    return moto(environ, start)


logging.getLogger("werkzeug").disabled = True
server = make_server("127.0.0.1", 0, google, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = "http://127.0.0.1:%d" % server.port
for bucket in sys.argv[1:]:
    request = urllib.request.Request(f"{endpoint}/{bucket}", b"", {"Authorization": "Bearer test"}, method="PUT")
    urllib.request.urlopen(request).close()
print(endpoint, flush=True)
sys.stdin.read()
