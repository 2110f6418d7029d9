"""What the documentation tells people to type works as it stands there, names of their own things replaced."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from unittest.mock import patch

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.mill import Mill
from tests.redis_users import as_user
from worker.cli import app as worker_app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+# .*")
_JOB = re.compile(r"job-[0-9a-f]{16}")


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block in ``language``."""
    return [
        (page.name, text)
        for page in PAGES
        for found, text in _FENCE.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def commands(program: str) -> list[str]:
    """Every line of the pages, fenced or indented, that runs ``program``."""
    lines = [line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()]
    stripped = (_COMMENT.sub("", line).strip() for line in lines if not line.startswith("docker"))
    return sorted({line for line in stripped if line.startswith(f"{program} ") and "`" not in line})


#: Commands that want a job of their own, which has not ended.
STEERING = ("pause", "resume", "priority", "cancel", "delete")


def waiting_job(mill: Mill, name: str) -> str:
    """A job that no worker runs."""
    source = mill.prompts(re.sub(r"\W+", "-", name), 3)
    return mill.call("submit", source, "--model", "nobody").ok().out.strip()


def in_store(mill: Mill, job: str, code: str) -> str:
    """``code`` with the tests' store and a job that is there."""
    return _JOB.sub(job, code.replace("promptmill-data", str(mill.store_path)))


@pytest.fixture(scope="module")
def ended_job(mill: Mill) -> str:
    source = mill.prompts("documented", 3)
    done = mill.call("submit", source, "--model", "tiny", "--max-tokens", "4", "--wait").ok()
    return done.out.strip()


def chat_request(name: str, content: str) -> str:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


@pytest.fixture(scope="module")
def folder(mill: Mill, tiny: Path) -> Path:
    """The files that the pages speak of, where a reader would have them."""
    products = ROOT / "ops" / "demo_data" / "products.csv"
    head = "".join(products.read_text(encoding="utf-8").splitlines(keepends=True)[:4])
    mill.write("products.csv", head)
    mill.write("prompt.txt", "Write one sentence about {name}.\n")
    mill.write("prompts.jsonl", '{"prompt": "a lamp"}\n{"prompt": "a bag"}\n')
    mill.write("dump.gz", gzip.compress(b"prompt\na lamp\n"))
    mill.write("requests.jsonl", chat_request("one", "a lamp") + chat_request("two", "a bag"))
    (mill.folder / "my-model").symlink_to(tiny)
    prices = pa.array([Decimal("3.50"), Decimal("12.00")], pa.decimal128(8, 2))
    pq.write_table(pa.table({"sku": ["L-1", "B-2"], "title": ["a lamp", "a bag"], "price": prices}),
                   mill.folder / "catalog.parquet")  # fmt: skip
    save_dataset(mill.folder / "reviews", pa.table({"text": ["bright", "roomy"], "stars": [5, 4]}))
    (mill.folder / "parts").mkdir()
    (mill.folder / "parts" / "one.csv").write_text(head, encoding="utf-8")
    return mill.folder


def save_dataset(folder: Path, table: pa.Table) -> None:
    """As ``datasets.Dataset.save_to_disk`` does."""
    folder.mkdir()
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))


@pytest.fixture(scope="module")
def answered_job(mill: Mill, folder: Path, chatty: str) -> str:
    """A job of OpenAI's requests, one of which has failed."""
    source = mill.write("more.jsonl", chat_request("fine", "a lamp") + chat_request("long", "lamp " * 900))
    job = mill.call("submit", source, "--model", chatty).ok().out.strip()
    mill.wait_for(job, "completed")
    return job


@pytest.fixture
def exports(mill: Mill, ended_job: str, answered_job: str) -> None:
    """The files that the commands on the pages make."""
    mill.call("results", answered_job, "--to", "out.jsonl", "--format", "openai").ok()
    mill.call("results", ended_job, "--to", "copy.csv").ok()


@pytest.mark.parametrize("command", commands("promptmill"))
def test_a_command_of_the_docs_does_what_it_says(
    mill: Mill, folder: Path, tiny: Path, ended_job: str, command: str
) -> None:
    job = waiting_job(mill, command) if command.split()[1] in STEERING else ended_job
    arguments = shlex.split(_JOB.sub(job, command))[1:]
    if "gpt2" in arguments:  # the one machine's own run: its model is loaded, so take the small one
        arguments = [f"small={tiny}" if word == "gpt2" else word for word in arguments]
        arguments[arguments.index("--max-tokens") + 1] = "4"
        # It starts workers: on a Redis that others share it logs in as one.
        assert mill.run(*arguments, PROMPTMILL_REDIS_URL=as_user(mill.redis_url, "worker")).ok().out
        return
    assert mill.call(*arguments).ok()


@pytest.mark.parametrize("line", commands("zcat"))
def test_what_is_piped_into_a_command_of_the_docs_is_read(mill: Mill, folder: Path, line: str) -> None:
    unpack, command = line.split(" | ")
    content = gzip.decompress((folder / unpack.split()[1]).read_bytes())
    assert mill.call(*shlex.split(command)[1:], stdin=content).ok()


@pytest.mark.parametrize("command", commands("promptmill-worker"))
def test_a_worker_command_of_the_docs_has_flags_that_exist(command: str) -> None:
    arguments = shlex.split(command)[1:]
    shown = CliRunner().invoke(worker_app, [arguments[0], "--help"], env={"COLUMNS": "200"}).output
    assert all(word in shown for word in arguments if word.startswith("--"))


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_of_the_docs_runs_and_prints_something(
    mill: Mill, ended_job: str, exports: None, chatty: str, capsys: pytest.CaptureFixture[str], page: str, code: str
) -> None:
    here = in_store(mill, ended_job, code).replace('"copy"', f'"{chatty}"').replace("=60", "=4")
    with patch.dict(os.environ, mill.environment), contextlib.chdir(mill.folder):
        exec(compile(here, page, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize(("page", "query"), blocks("sql"))
def test_sql_of_the_docs_runs(mill: Mill, ended_job: str, page: str, query: str) -> None:
    rows = duckdb.sql(in_store(mill, ended_job, query)).fetchall()
    assert any("ok" in row for row in rows)


def test_the_pages_show_commands_at_all() -> None:
    assert len(commands("promptmill")) >= 6
    assert blocks("python")
    assert blocks("sql")


@pytest.fixture(scope="module", autouse=True)
def _clean(mill: Mill) -> Iterator[None]:
    yield
    shutil.rmtree(mill.folder / "parts", ignore_errors=True)
    (mill.folder / "my-model").unlink(missing_ok=True)
