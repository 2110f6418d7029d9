"""An S3 server for tests: moto's, and the variables by which commands and workers find it."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.server import MotoRequestHandler
from werkzeug.serving import make_server


def variables(endpoint: str) -> dict[str, str]:
    """The usual ones of an S3 endpoint; the keys keep every client from asking a metadata service for them."""
    return {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_ALLOW_HTTP": "true",
        "AWS_ENDPOINT": endpoint,
    }  # fmt: skip


@contextlib.contextmanager
def s3_server(address: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """The endpoint of a server. All of a process have the same buckets."""
    app = _OneWriter(DomainDispatcherApplication(create_backend_app))
    server = make_server(address, port, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_bucket(endpoint: str, name: str) -> None:
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    client.create_bucket(Bucket=name)


class _OneWriter:
    """One PUT at a time: between its look at ``If-None-Match`` and its write moto lets others in, and two may win."""

    def __init__(self, app: Any) -> None:
        self._app, self._lock = app, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "PUT":
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        if length := environ.get("CONTENT_LENGTH"):
            # Before the lock: a writer that is cut off, or slow, keeps nobody waiting.
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
        with self._lock:
            return self._app(environ, start_response)  # type: ignore[no-any-return]


if __name__ == "__main__":
    with s3_server(sys.argv[1], int(sys.argv[2])) as endpoint:
        make_bucket(endpoint, sys.argv[3])
        print("ready", flush=True)
        threading.Event().wait()
