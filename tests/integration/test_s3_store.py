"""The store on S3: moto's server stands for an endpoint that keeps its word, a small one for those that do not."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest

from jobs.errors import ForeignStoreError, NotFoundError, StoreUnavailableError
from jobs.finalize import finalize
from jobs.spec import Status
from jobs.store import Store
from tests.job_work import accept_job, dataset, run_batches
from tests.s3_server import make_bucket, s3_server, variables


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """No other variables of S3 than those of this endpoint."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**variables(url), "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URI of an empty bucket."""
    use_endpoint(monkeypatch, server)
    name = f"bucket-{abs(hash(request.node.name))}"
    make_bucket(server, name)
    return f"s3://{name}"


def test_a_store_on_s3_is_found_again_by_its_id(bucket: str) -> None:
    store = Store.open(f"{bucket}/prefix/", create=True)
    assert Store.open(f"{bucket}/prefix").id == store.id
    assert (store.uri, store.is_local, store.root) == (f"{bucket}/prefix", False, None)
    assert store.locate("jobs/a.json") == f"{bucket}/prefix/jobs/a.json"
    assert [item.path for item in store.list("")] == ["_promptmill.json"]


def test_two_prefixes_of_a_bucket_are_two_stores(bucket: str) -> None:
    first, second = (Store.open(f"{bucket}/{name}", create=True) for name in ("a", "ab"))
    first.put_if_absent("jobs/a.json", b"1")
    assert first.id != second.id
    assert not second.exists("jobs/a.json")
    assert [item.path for item in second.list("")] == ["_promptmill.json"]


def test_of_24_writers_of_an_object_exactly_one_wins(bucket: str) -> None:
    store = Store.open(bucket, create=True)
    gate = threading.Barrier(24)

    def put(index: int) -> bool:
        gate.wait()
        return store.put_if_absent("data/s1/parts/part-00000.parquet", b"%d" % index)

    with ThreadPoolExecutor(24) as pool:
        won = list(pool.map(put, range(24)))
    assert won.count(True) == 1
    assert store.get("data/s1/parts/part-00000.parquet") == b"%d" % won.index(True)


def test_objects_are_listed_found_missed_and_deleted(bucket: str) -> None:
    store = Store.open(f"{bucket}/x", create=True)
    for path in ("data/s1/parts/a", "data/s1/input/a", "data/s10/parts/a"):
        store.put_if_absent(path, b"123")
    found = {(item.path, item.size) for item in store.list("data/s1")}
    assert found == {("data/s1/parts/a", 3), ("data/s1/input/a", 3)}
    store.delete(["data/s1/parts/a", "data/s1/parts/never-there"])
    assert not store.exists("data/s1/parts/a")
    with pytest.raises(NotFoundError, match="s3://"):
        store.get("data/s1/parts/a")


def test_a_whole_job_ends_on_s3_as_on_a_disk(bucket: str) -> None:
    store = Store.open(bucket, create=True)
    job = accept_job(store)
    run_batches(store, job)
    assert finalize(store, job, Status.COMPLETED).completed == 10
    assert dataset(store, job.id).column("row_index").to_pylist() == list(range(10))


def test_a_bucket_of_something_else_is_refused(bucket: str, server: str) -> None:
    boto3.client("s3", endpoint_url=server).put_object(Bucket=bucket.removeprefix("s3://"), Key="photo.jpg", Body=b"x")
    with pytest.raises(ForeignStoreError, match=r"photo\.jpg"):
        Store.open(bucket, create=True)


def test_a_bucket_that_is_not_there_is_said_by_name(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, server)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    with pytest.raises(StoreUnavailableError, match="s3://no-such-bucket"):
        Store.open("s3://no-such-bucket", create=True)


class _Overwriting(BaseHTTPRequestHandler):
    """As much of S3 as a store needs, but for If-None-Match, which it ignores."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200)

    def do_GET(self) -> None:
        if "list-type=2" in self.path:
            return self._answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        content = self.objects.get(self.path)
        return self._answer(404) if content is None else self._answer(200, content)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        """The removal of many objects; their keys stand in the body."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        keys = re.findall("<Key>(.*?)</Key>", body)
        for key in keys:
            self.objects.pop(f"{self.path.partition('?')[0]}/{key}", None)
        removed = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{removed}</DeleteResult>".encode())

    def _answer(self, status: int, content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Sun, 01 Mar 2026 12:00:00 GMT")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests' output is read by people."""


@pytest.fixture
def overwriting(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What a server that ignores If-None-Match holds."""
    objects: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Overwriting,), {"objects": objects}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
        yield objects
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_endpoint_that_ignores_put_if_absent_is_refused_and_gets_no_store(overwriting: dict[str, bytes]) -> None:
    with pytest.raises(StoreUnavailableError, match="ignores put-if-absent"):
        Store.open("s3://bucket/prefix", create=True)
    assert overwriting == {}


def test_a_probe_finds_an_endpoint_that_came_to_ignore_it_later(overwriting: dict[str, bytes]) -> None:
    overwriting["/bucket/_promptmill.json"] = b'{"store_id": "a", "version": 1}'
    store = Store.open("s3://bucket")
    with pytest.raises(StoreUnavailableError, match="ignores put-if-absent"):
        store.probe()


def test_an_endpoint_that_is_away_is_said_to_be_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        use_endpoint(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="s3://bucket/prefix"):
            Store.open("s3://bucket/prefix", create=True)
        assert time.monotonic() - began < 60
