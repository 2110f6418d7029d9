"""Every mistake in the input is one clear line with its place, exit code 2 or 3, and nothing is enqueued."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.mill import Mill, Outcome, Server, wait_until

GOOD = b'{"prompt": "a good row"}\n'


def submit(mill: Mill, *arguments: str, stdin: bytes = b"", **env: str) -> Outcome:
    return mill.call("submit", *arguments, "--model", "nobody", stdin=stdin, **env)


def assert_refused(mill: Mill, done: Outcome, *said: str, code: int = 2) -> None:
    """Exit code, one line on stderr that says all of ``said``, no traceback, and nothing left behind."""
    assert (done.code, done.out) == (code, ""), done
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    for words in said:
        assert words in lines[0]
    assert mill.job_files() == []
    assert mill.stages() == []


#: What is in the file, the line at fault (None: the whole file), and what is said about it.
BAD_FILES: dict[str, tuple[bytes, int | None, str]] = {
    "empty": (b"", None, "no rows"),
    "nothing but blank lines": (b"\n\r\n  \n", None, "no rows"),
    "utf-16": (GOOD.decode().encode("utf-16"), None, "UTF-16"),
    "utf-16 without a mark": (GOOD.decode().encode("utf-16-le"), 1, "UTF-16"),
    "invalid utf-8": (GOOD + b'{"prompt": "caf\xe9"}\n', 2, "0xE9"),
    "malformed json": (GOOD + b'{"prompt": nothing}\n' + GOOD, 2, "JSON"),
    "cut last line": (GOOD + GOOD + b'{"prompt": "it en', 3, "cut"),
    "an array": (GOOD + b'["a", "b"]\n', 2, "object"),
    "a string": (GOOD + b'"a prompt"\n', 2, "object"),
    "prompt missing in one row": (GOOD + b'{"text": "a"}\n', 2, "prompt"),
    "prompt missing in all rows": (b'{"text": "a"}\n', 1, "--prompt-column"),
    "prompt is null": (GOOD + b'{"prompt": null}\n', 2, "prompt"),
    "prompt is a number": (GOOD + b'{"prompt": 7}\n', 2, "not a string"),
    "prompt is empty": (GOOD + b'{"prompt": ""}\n', 2, "empty"),
    "duplicate ids": (b'{"id": "x", "prompt": "a"}\n{"id": "y", "prompt": "b"}\n{"id": "x", "prompt": "c"}\n', 3,
                      "'x' repeats the one at line 1"),
    "a control character in an id": (b'{"id": "a\\u0007", "prompt": "a"}\n', 1, "control"),
    "duplicate keys": (GOOD + b'{"prompt": "a", "prompt": "b"}\n', 2, "'prompt'"),
    "NaN": (GOOD + b'{"prompt": "a", "weight": NaN}\n', 2, "NaN"),
    "Infinity": (GOOD + b'{"prompt": "a", "temperature": -Infinity}\n', 2, "Infinity"),
    "a lone surrogate": (GOOD + b'{"prompt": "a \\ud800 b"}\n', 2, "surrogate"),
    "bad temperature": (GOOD + b'{"prompt": "a", "temperature": -1}\n', 2, "temperature"),
    "bad max_tokens": (GOOD + b'{"prompt": "a", "max_tokens": "many"}\n', 2, "max_tokens"),
    "bad n": (GOOD + b'{"prompt": "a", "n": 0}\n', 2, "n"),
    "messages without a role": (b'{"messages": [{"content": "a"}]}\n', 1, "role"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_told_with_its_line_and_not_accepted(idle: Mill, what: str) -> None:
    content, line, said = BAD_FILES[what]
    path = idle.write("bad.jsonl", content)

    assert_refused(idle, submit(idle, path), f"{path}:{line}: " if line else path, said)


@pytest.mark.parametrize("what", ["utf-16", "cut last line", "duplicate ids", "duplicate keys"])
def test_a_bad_stream_on_stdin_is_told_as_well(idle: Mill, what: str) -> None:
    content, line, said = BAD_FILES[what]

    # stdin is gone when its ids are compared: the first of two is told by its line alone.
    said = "repeats the one at line 1" if what == "duplicate ids" else said
    assert_refused(idle, submit(idle, "-", stdin=content), f"stdin:{line}: " if line else "stdin: ", said)


BAD_CSV = {
    "no prompt column": (b"title\nlamp\n", (), "--prompt-column"),
    "too many cells": (b"prompt,b\na,1\nb,2,3\n", (), ":3: "),
    "a quote that never ends": (b'prompt\n"a\n', (), "quote"),
    "unknown template field": (b"title,price\nlamp,3\n", ("--template", "About {titel}"), "title"),
    "duplicate columns": (b"prompt,a,a\nx,1,2\n", (), "'a'"),
}


@pytest.mark.parametrize("what", BAD_CSV)
def test_a_bad_table_is_told(idle: Mill, what: str) -> None:
    content, flags, said = BAD_CSV[what]

    assert_refused(idle, submit(idle, idle.write("bad.csv", content), *flags), said)


def test_all_bad_rows_are_told_at_once_and_the_good_ones_are_not_accepted(idle: Mill) -> None:
    path = idle.write("bad.jsonl", (GOOD + b"nonsense\n") * 30)
    done = submit(idle, path, "--batch-size", "1")

    lines = done.err.splitlines()
    assert done.code == 2
    assert [line for line in lines if "Traceback" in line] == []
    assert [line.split(": ")[1] for line in lines[:-1]] == [f"{path}:{number}" for number in range(2, 41, 2)]
    assert lines[-1] == "... and 10 more"
    assert (idle.job_files(), idle.stages()) == ([], [])


def _missing(folder: Path) -> Path:
    return folder / "missing.jsonl"


def _directory(folder: Path) -> Path:
    (folder / "folder.jsonl").mkdir()
    return folder / "folder.jsonl"


def _unreadable(folder: Path) -> Path:
    path = folder / "unreadable.jsonl"
    path.write_bytes(GOOD)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    return path


def _unopenable(folder: Path) -> Path:
    path = folder / "socket.jsonl"
    # Its address has to be short, whatever the folder's name.
    with socket.socket(socket.AF_UNIX) as listener, _inside(folder):
        listener.bind(path.name)
    return path


class _inside:  # noqa: N801 - reads as a word
    def __init__(self, folder: Path) -> None:
        self._folder, self._before = folder, os.getcwd()

    def __enter__(self) -> None:
        os.chdir(self._folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)


def _no_extension(folder: Path) -> Path:
    (folder / "rows").write_bytes(GOOD)
    return folder / "rows"


def _unmatched(folder: Path) -> Path:
    return folder / "*.jsonl"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_missing, "no such file"),
        (_directory, "directory"),
        (_unreadable, "permission"),
        (_unopenable, "cannot be read"),
        (_no_extension, "--format"),
        (_unmatched, "no file matches"),
    ],
)
def test_a_source_that_cannot_be_read_is_told(
    idle: Mill, tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    path = make(tmp_path)

    assert_refused(idle, submit(idle, str(path)), str(path), said)


BAD_FLAGS = {
    "temperature": ("--temperature", "-0.5"),
    "temperature that is no number": ("--temperature", "nan"),
    "top_p": ("--top-p", "1.5"),
    "top_k": ("--top-k", "-1"),
    "min_p": ("--min-p", "2"),
    "max_tokens": ("--max-tokens", "0"),
    "repetition_penalty": ("--repetition-penalty", "0"),
    "n": ("--n", "0"),
    "seed": ("--seed", "-1"),
    "stop": ("--stop", ""),
    "stop token": ("--stop-token-id", "-1"),
    "batch size": ("--batch-size", "0"),
    "priority": ("--priority", "9"),
    "error rate": ("--max-error-rate", "1.5"),
    "job id with a slash": ("--job-id", "a/b"),
    "job id that is empty": ("--job-id", ""),
    "job id that is too long": ("--job-id", "x" * 57),
    "job id with a dot": ("--job-id", "../up"),
    "deadline": ("--deadline", "soon"),
    "deadline that has passed": ("--deadline", "2001-01-01T00:00:00Z"),
    "label": ("--label", "novalue"),
    "template without an end": ("--template", "about {title"),
    "template with a field that no row has": ("--template", "about {title}"),
    "template file": ("--template", "@/nowhere/template.txt"),
    "prompt column": ("--prompt-column", "text"),
    "id column": ("--id-column", "key"),
    "column to keep": ("--keep-columns", "price"),
    "format": ("--format", "yaml"),
}


@pytest.mark.parametrize("what", BAD_FLAGS)
def test_a_bad_flag_is_told_by_its_name_or_value(idle: Mill, what: str) -> None:
    flag, value = BAD_FLAGS[what]
    done = submit(idle, idle.write("good.jsonl", GOOD), flag, value)

    assert_refused(idle, done)
    assert flag.lstrip("-").split("-")[0] in done.err.replace("_", "-") or value in done.err


@pytest.mark.parametrize("arguments", [("--nonsense", "1"), ("--max-tokens", "many")])
def test_a_flag_that_the_command_line_cannot_read_exits_2(idle: Mill, arguments: tuple[str, str]) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD), *arguments)

    assert (done.code, done.out, idle.job_files()) == (2, "", [])
    assert arguments[0] in done.err


def test_columns_are_kept_or_dropped_but_not_both(idle: Mill) -> None:
    path = idle.write("good.jsonl", GOOD)

    assert_refused(idle, submit(idle, path, "--keep-columns", "prompt", "--drop-columns", "a"), "exclude each other")


def test_a_range_is_told_in_words(idle: Mill) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD), "--temperature", "-1")

    assert_refused(idle, done, "--temperature -1.0: use a number from 0 to 100")


def test_an_empty_source_is_told(idle: Mill) -> None:
    assert_refused(idle, submit(idle, ""), "SOURCE is empty")


def test_an_interrupted_submit_says_that_nothing_was_submitted(idle: Mill) -> None:
    submitting = idle.start("submit", "-", "--model", "nobody", stdin=subprocess.PIPE)
    assert submitting.popen.stdin is not None
    submitting.popen.stdin.write(GOOD * 50_000)
    submitting.popen.stdin.flush()
    wait_until("the first batches to be staged", idle.stages)
    submitting.send(signal.SIGINT)

    assert submitting.wait() == 130
    assert submitting.said() == "interrupted: nothing was submitted; run the same command again\n"
    assert (idle.job_files(), idle.stages()) == ([], [])


# -- The store and Redis.


def test_a_store_that_cannot_be_written_exits_3(idle: Mill) -> None:
    file = idle.write("a-file", b"")
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_STORE=f"{file}/store")

    assert_refused(idle, done, "a-file/store", code=3)


def test_a_store_without_write_permission_exits_3(idle: Mill) -> None:
    folder = idle.folder / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")

    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_STORE=str(folder)), "locked", code=3)


def test_a_folder_that_belongs_to_something_else_exits_3_and_stays_as_it_is(idle: Mill) -> None:
    other = idle.folder / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"meow")
    done = submit(idle, idle.write("good.jsonl", GOOD), "--store", str(other))

    assert_refused(idle, done, str(other), "belongs to something else", code=3)
    assert [path.name for path in other.iterdir()] == ["cat.jpg"]


def test_a_store_of_another_format_exits_3(idle: Mill) -> None:
    idle.store_path.mkdir()
    (idle.store_path / "_promptmill.json").write_text('{"store_id": "x", "version": 99}')

    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD)), "format 99", code=3)


def test_redis_down_exits_3_and_says_where_it_was_looked_for(idle: Mill) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL="redis://127.0.0.1:1/0")

    assert_refused(idle, done, "Redis at 127.0.0.1:1", code=3)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "guarded", password="right-one").start()
    yield server
    server.close()


def test_a_wrong_password_exits_3_and_is_not_shown(idle: Mill, guarded: Server) -> None:
    for password in (":wrong-one@", ""):
        url = f"redis://{password}127.0.0.1:{guarded.port}/0"
        done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL=url)

        assert_refused(idle, done, f"127.0.0.1:{guarded.port}", "password", code=3)
        assert "wrong-one" not in done.err


def test_a_redis_without_memory_exits_3_and_nothing_is_accepted(idle: Mill, guarded: Server) -> None:
    guarded.client.config_set("maxmemory", 1)
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL=guarded.url)

    assert_refused(idle, done, "out of memory", code=3)


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[int]:
    """The port of a server that speaks TLS with a certificate which nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    today = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(today).not_valid_after(today + timedelta(days=1))
    certificate = builder.sign(key, hashes.SHA256())
    secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *secret) + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as tls:
                tls.recv(1024)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_a_certificate_that_nobody_vouches_for_exits_3(idle: Mill, impostor: int) -> None:
    url = f"rediss://:secret-word@127.0.0.1:{impostor}/0"
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL=url)

    assert_refused(idle, done, f"127.0.0.1:{impostor}", "certificate verify failed", code=3)
    assert "secret-word" not in done.err


def test_a_url_that_is_none_exits_2(idle: Mill) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL="localhost:6379")

    assert_refused(idle, done, "redis://", code=2)


def test_no_live_worker_is_a_warning_and_the_job_waits(idle: Mill) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD)).ok()

    assert "warning: no live worker serves 'nobody'" in done.err
    assert "promptmill-worker start --model nobody=" in done.err
    assert idle.job_files() == [f"{done.out.strip()}.json"]
    assert idle.queue_length("nobody") == 1


# -- As people run it: the same through processes.


def test_the_installed_command_refuses_alike(idle: Mill) -> None:
    path = idle.write("bad.jsonl", GOOD + b'{"prompt": "a", "prompt": "b"}\n')

    assert_refused(idle, idle.run("submit", path, "--model", "nobody"), f"{path}:2: ")


def test_the_installed_command_refuses_a_broken_stream_alike(idle: Mill) -> None:
    done = idle.run("submit", "-", "--model", "nobody", stdin=GOOD + b'{"prompt": "cut')

    assert_refused(idle, done, "stdin:2: ")


def test_the_installed_command_exits_3_without_redis(idle: Mill) -> None:
    path = idle.write("good.jsonl", GOOD)
    done = idle.run("submit", path, "--model", "nobody", PROMPTMILL_REDIS_URL="redis://127.0.0.1:1/0")

    assert_refused(idle, done, "Redis at 127.0.0.1:1", code=3)
