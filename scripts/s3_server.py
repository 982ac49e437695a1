"""Serves S3 from memory on a free port of loopback, with moto: for tests and demonstrations.

Usage: $(scripts/moto.sh) scripts/s3_server.py [--tls CERTIFICATE KEY] [--conditions ignored|refused] BUCKET...
With --conditions, it does not know the precondition of a store, as older services: it stores all the same, or refuses. Makes the
buckets, prints the endpoint, and serves until it is killed, or until its standard input ends if that is a pipe.
"""
import logging
import signal
import ssl
import sys
import threading
import urllib.request

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from server_process import serve

STS = "AWS4-HMAC-SHA256 Credential=sts/20261130/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=0"
moto = DomainDispatcherApplication(create_backend_app)


def service(environ, start_response):
    """Answers one request, as a WSGI application."""
    # moto knows an unsigned request for keys by its body, but clients may ask in the query.
    if "Action=AssumeRoleWithWebIdentity" in environ["QUERY_STRING"]:
        environ["HTTP_AUTHORIZATION"] = STS
    if conditions and environ.pop("HTTP_IF_NONE_MATCH", None) and conditions == "refused":
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        start_response("501 Not Implemented", [("Content-Type", "application/xml")])
        return [b"<Error><Code>NotImplemented</Code></Error>"]
    return moto(environ, start_response)


logging.getLogger("werkzeug").disabled = True
tls, conditions, buckets = None, None, sys.argv[1:]
if buckets[:1] == ["--tls"]:
    tls, buckets = tuple(buckets[1:3]), buckets[3:]
if buckets[:1] == ["--conditions"]:
    conditions, buckets = buckets[1], buckets[2:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
server = make_server("127.0.0.1", 0, service, threaded=True, ssl_context=tls)
threading.Thread(target=server.serve_forever, daemon=True).start()
endpoint = "%s://127.0.0.1:%d" % ("https" if tls else "http", server.port)
# It is this process that answers: there is nobody to verify.
nobody = ssl._create_unverified_context() if tls else None
for bucket in buckets:
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", b"", method="PUT"), context=nobody).close()
print(endpoint, flush=True)
serve()
