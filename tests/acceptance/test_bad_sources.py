"""Places that hold no source: missing files, folders of other things, links, pipes, URIs; nothing is enqueued."""

from __future__ import annotations

import gzip
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from tests.mill import Mill
from tests.outcome import Outcome
from tests.refusals import GOOD, assert_refused, submit


def _write(path: Path, content: bytes = GOOD) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _dataset(splits: str) -> Callable[[Path], None]:
    return lambda folder: _write(folder / "d/dataset_dict.json", f'{{"splits": {splits}}}'.encode())


def _state(content: bytes) -> Callable[[Path], None]:
    return lambda folder: _write(folder / "d/state.json", content)


def _unreadable(folder: Path) -> None:
    _write(folder / "x.jsonl")
    (folder / "x.jsonl").chmod(0)
    if os.access(folder / "x.jsonl", os.R_OK):
        pytest.skip("this user may read everything")


def _socket(folder: Path) -> None:
    # Its address has to be short, whatever the folder's name.
    with socket.socket(socket.AF_UNIX) as listener, chdir(folder):
        listener.bind("x.jsonl")


def _mixed(folder: Path) -> None:
    _write(folder / "d/a.jsonl")
    _write(folder / "d/b.csv", b"prompt\na\n")


def _nothing(folder: Path) -> None:
    pass


PLACES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a missing file": (_nothing, "x.jsonl", "x.jsonl: no such file"),
    "a missing file of nearly the name": (lambda at: _write(at / "prompts.jsonl"), "prompt.jsonl",
                                          "no such file, did you mean 'prompts.jsonl'?"),
    "a missing folder": (_nothing, "data/x.jsonl", "no folder data"),
    "a file in a file": (lambda at: _write(at / "x.jsonl"), "x.jsonl/y.jsonl", "Not a directory"),
    "a name of 300 characters": (_nothing, "x" * 300 + ".jsonl", "too long"),
    "a name with a NUL": (_nothing, "a\0.jsonl", "cannot be a path"),
    "a name with a line break": (lambda at: _write(at / "a\nb.jsonl", b"{"), "a\nb.jsonl", "a\\nb.jsonl:1: "),
    "a name that is not UTF-8": (lambda at: _write(at / "\udcff.jsonl", b"caf\xe9\n"), "\udcff.jsonl", "0xE9"),
    "no extension": (lambda at: _write(at / "rows"), "rows", "--format"),
    "a glob that matches nothing": (_nothing, "*.jsonl", "no file matches"),
    "a glob of several formats": (_mixed, "d/*", "different formats (csv, jsonl)"),
    "a folder of several formats": (_mixed, "d", "different formats (csv, jsonl)"),
    "an empty folder": (lambda at: (at / "d").mkdir(), "d", "without a file that can be read"),
    "a folder of other files": (lambda at: _write(at / "d/readme.md"), "d", "without a file that can be read"),
    "a folder that is called like a file": (lambda at: (at / "x.jsonl").mkdir(), "x.jsonl", "directory"),
    "no permission": (_unreadable, "x.jsonl", "permission"),
    "a socket": (_socket, "x.jsonl", "cannot be read"),
    "a link to nowhere": (lambda at: (at / "x.jsonl").symlink_to("nowhere"), "x.jsonl", "no such file"),
    "a link to itself": (lambda at: (at / "x.jsonl").symlink_to("x.jsonl"), "x.jsonl", "symbolic links"),
    "a saved dataset without its files": (_state(b'{"_data_files": [{"filename": "a.arrow"}]}'), "d", "d/a.arrow: no"),
    "a saved dataset of other files": (_state(b'{"_data_files": [{"filename": "../a.arrow"}]}'), "d", "save_to_disk"),
    "a saved dataset that is damaged": (_state(b"{"), "d", "save_to_disk"),
    "a saved dataset of two splits": (_dataset('["train", "test"]'), "d", "name one, for example d/train"),
    "a saved dataset of no splits": (_dataset("[]"), "d", "names no splits"),
    "a saved dataset that is its own split": (_dataset('["."]'), "d", "names no splits"),
    "a saved dataset of another place": (_dataset('["/etc"]'), "d", "names no splits"),
    "no name": (_nothing, "", "SOURCE is empty"),
    "a device of NULs": (_nothing, "/dev/zero", "--format"),
    # URIs.
    "an unknown scheme": (_nothing, "ftp://x/y.jsonl", "unknown scheme 'ftp'"),
    "no bucket": (_nothing, "s3:///x.jsonl", "names no bucket"),
    "no file": (_nothing, "file://", "names no file"),
    "a missing file:// URI": (_nothing, "file:///nowhere/x.jsonl", "no folder /nowhere"),
    "a folder of a web server": (_nothing, "https://host/", "only single files"),
    "a glob of a web server": (_nothing, "https://host/*.jsonl", "only single files"),
}  # fmt: skip


@pytest.mark.parametrize("what", PLACES)
def test_a_place_without_a_source_is_told(idle: Mill, what: str) -> None:
    make, source, said = PLACES[what]
    make(idle.folder)

    assert_refused(idle, submit(idle, source), said)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_a_device_without_an_end_is_refused_at_its_beginning(idle: Mill, kind: str) -> None:
    assert_refused(idle, submit(idle, "/dev/zero", "--format", kind), "/dev/zero:1: holds NUL bytes")


@pytest.mark.parametrize(
    ("uri", "code", "said"),
    [
        ("http://127.0.0.1:1/x.jsonl", 3, "http://127.0.0.1:1/x.jsonl"),
        ("s3://bucket/x.jsonl", 3, "s3://bucket/x.jsonl"),
        ("http://127.0.0.1:99999/x.jsonl", 2, "invalid port"),
    ],
)
def test_a_server_that_is_not_there_exits_3_and_a_uri_that_is_none_2(
    idle: Mill, uri: str, code: int, said: str
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_ENDPOINT": "http://127.0.0.1:1"}

    assert_refused(idle, submit(idle, uri, AWS_ALLOW_HTTP="true", **keys), said, code=code)


@pytest.mark.parametrize("source", ["d", "d/**/*.jsonl"])
def test_a_folder_that_links_to_itself_is_read_once(idle: Mill, source: str) -> None:
    _write(idle.folder / "d/x.jsonl")
    (idle.folder / "d/again").symlink_to(".")

    assert idle.call("check", source, "--json").ok().json["rows"] == 1


def test_a_name_that_is_not_utf_8_is_shown_escaped(idle: Mill) -> None:
    _write(idle.folder / "\udcff.jsonl")

    assert idle.call("check", "\udcff.jsonl").ok().out.startswith("\\udcff.jsonl\n")
    assert idle.call("check", "\udcff.jsonl", "--json").ok().json["source"] == "\\udcff.jsonl"


STREAMS: dict[str, tuple[tuple[str, ...], bytes, str]] = {
    "nothing": ((), b"", "stdin: has no rows"),
    "blank lines": ((), b"\n\n", "stdin: has no rows"),
    "bytes": ((), bytes(range(256)) * 10, "stdin:1: holds NUL bytes"),
    "a cut line": ((), GOOD + b'{"prompt": "it en', "stdin:2: the last line ends in the middle"),
    "gzip": ((), gzip.compress(GOOD), "stdin: is compressed with gzip"),
    "cut gzip": (("--format", "jsonl.gz"), gzip.compress(GOOD)[:-5], "stdin: the compressed file is damaged or cut"),
    "no gzip": (("--format", "jsonl.gz"), GOOD, "damaged or cut"),
    "no Parquet": (("--format", "parquet"), GOOD, "stdin: cannot be read"),
    "no Arrow": (("--format", "arrow"), b"", "stdin: cannot be read"),
    "the same id twice": ((), b'{"id": "x", "prompt": "a"}\n' * 2, "stdin:2: the id repeats the one at line 1"),
}


@pytest.mark.parametrize("what", STREAMS)
def test_a_bad_stream_is_told(idle: Mill, what: str) -> None:
    flags, content, said = STREAMS[what]

    assert_refused(idle, submit(idle, "-", *flags, stdin=content), said)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_pipe_with_a_name_is_read_once_and_told(idle: Mill, kind: str) -> None:
    pipe = idle.folder / f"pipe.{kind}"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"caf\xe9\n",))
    writer.start()
    done = submit(idle, str(pipe))
    writer.join()

    assert_refused(idle, done, str(pipe))


def test_a_closed_stdin_is_told(idle: Mill) -> None:
    command = f'"{sys.executable}" -c "from producer.cli import main; main()" check - <&-'
    done = subprocess.run(["sh", "-c", command], env=idle.environment, capture_output=True, text=True, check=False)

    assert_refused(idle, Outcome(done.returncode, done.stdout, done.stderr), "stdin is closed")
