"""Sources in an object store and behind HTTP."""

from __future__ import annotations

import functools
import gzip
import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError, StoreUnavailableError
from producer.sources import SourceRow, open_source
from tests.integration.test_s3_store import bucket, server, use_endpoint

__all__ = ["bucket", "server"]


def put(bucket: str, server: str, key: str, content: bytes) -> str:
    boto3.client("s3", endpoint_url=server).put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=content)
    return f"{bucket}/{key}"


def rows(source: str) -> list[object]:
    return [row.values["prompt"] for row in open_source(source) if isinstance(row, SourceRow)]


def parquet(*prompts: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": list(prompts)}), buffer)
    return buffer.getvalue()


def test_files_on_s3_are_read_by_name_by_glob_and_by_folder(bucket: str, server: str) -> None:
    lines = b'{"prompt": "a"}\n' * 40_000
    assert rows(put(bucket, server, "in/one.jsonl.gz", gzip.compress(lines))) == ["a"] * 40_000
    put(bucket, server, "in/deep/two.parquet", parquet("b"))
    put(bucket, server, "in/deep/three.parquet", parquet("c", "d"))
    put(bucket, server, "in/deep/_SUCCESS", b"")
    assert rows(f"{bucket}/in/*/t*.parquet") == ["c", "d", "b"]
    assert rows(f"{bucket}/**/two.parquet") == ["b"]
    assert rows(f"{bucket}/in/deep/") == ["c", "d", "b"]
    source = open_source(f"{bucket}/in/deep/two.parquet")
    assert [row.file for row in source if isinstance(row, SourceRow)] == [f"{bucket}/in/deep/two.parquet"]


@pytest.mark.parametrize("key", ["absent.jsonl", "*.jsonl", "folder/"])
def test_what_is_not_there_is_bad_input(bucket: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        open_source(f"{bucket}/{key}")
    assert str(caught.value).startswith(f"{bucket}/{key}: ")
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_reached_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match=r"s3://bucket/a\.jsonl: ") as caught:
        open_source("s3://bucket/a.jsonl")
    assert "\n" not in str(caught.value)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server without ranges, as many are."""
    (tmp_path / "a.csv").write_text("prompt\nfrom the web\n")
    (tmp_path / "a.parquet").write_bytes(parquet("from the web"))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_file_behind_http_is_read(web: str) -> None:
    assert rows(f"{web}/a.csv") == rows(f"{web}/a.parquet") == ["from the web"]
    with pytest.raises(InputError, match="no such file"):
        open_source(f"{web}/b.csv")
