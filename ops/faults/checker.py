"""What must be true of a store whatever has happened to the processes that work on it: the promises P1 to P6 and P8.

It reads the files themselves, by DuckDB and JSON, and nothing of Promptmill's but the names of its files. What is wrong
comes back as sentences; none means that all is well.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from tests.files import files_below

STATUSES = {"ok", "error", "cancelled", "expired"}


@dataclass(frozen=True, slots=True)
class Expected:
    """What was submitted as ``job``: rows with a column ``number`` that counts them from 0, and ``n`` samples each."""

    job: str
    rows: int
    n: int = 1
    #: How the job may end.
    endings: frozenset[str] = frozenset({"completed"})
    #: The text that each row must have where it is ``ok``, by row and sample, as far as it is known.
    texts: Mapping[tuple[int, int], str] = field(default_factory=dict)
    #: Rows that may be errors, by the code that they then have.
    errors: Mapping[int, str] = field(default_factory=dict)


def check_store(folder: Path, expected: Iterable[Expected], deleted: Mapping[str, str] | None = None) -> list[str]:
    """Everything that is wrong with a store in which all of ``expected`` have ended, and nothing else was accepted.

    ``deleted`` names the jobs that were deleted, with their stages; what upkeep removes of them has been removed.
    """
    wanted = {each.job: each for each in expected}
    found = {path.name.removeprefix("job_id=") for path in folder.glob("results/*")}
    accepted = {path.stem for path in folder.glob("jobs/*.json") if "." not in path.stem}
    wrong = [f"P2: {job} was never submitted" for job in sorted((found | accepted) - set(wanted))]
    for each in wanted.values():
        wrong += check_job(folder, each)
    for job, stage in (deleted or {}).items():
        wrong += _remains(folder, job, stage)
    return wrong


def _remains(folder: Path, job: str, stage: str) -> Iterator[str]:
    """A deleted job has a tombstone and nothing else."""
    tombstone = folder / "jobs" / f"{job}.deleted.json"
    if not tombstone.exists():
        yield f"{job} was deleted and has no tombstone"
    for pattern in (f"jobs/{job}.*", f"results/job_id={job}/**/*", f"data/{stage}/**/*"):
        for path in folder.glob(pattern):
            if path != tombstone and path.is_file():
                yield f"{job} was deleted, and {path.relative_to(folder)} is there"


def check_job(folder: Path, expected: Expected) -> list[str]:
    """Everything that is wrong with the dataset of a job that has ended."""
    dataset = folder / "results" / f"job_id={expected.job}"
    if not (dataset / "_SUCCESS").exists():
        return [f"P1: {expected.job} has not ended"]
    try:
        manifest = json.loads((dataset / "_manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        return [f"P5: {expected.job} has _SUCCESS, and its manifest cannot be read: {error}"]
    wrong = [*_files(dataset, manifest)]
    if not wrong:
        wrong += [*_rows(dataset, manifest, expected)]
    return [f"{sentence} ({expected.job})" for sentence in wrong]


def _files(dataset: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """P5: the files are those of the manifest, byte for byte."""
    listed = {entry["path"]: entry for entry in manifest["files"]}
    there = {path.name for path in dataset.glob("data-*")}
    for name in sorted(there ^ set(listed)):
        yield f"P5: {name} is in {'the folder' if name in there else 'the manifest'} only"
    for name in sorted(there & set(listed)):
        content = (dataset / name).read_bytes()
        if len(content) != listed[name]["bytes"] or hashlib.sha256(content).hexdigest() != listed[name]["sha256"]:
            yield f"P5: {name} is not what the manifest says"


def _rows(dataset: Path, manifest: dict[str, Any], expected: Expected) -> Iterator[str]:
    columns = "row_index, sample_index, status, error_code, text, finish_reason, number"
    source = f"read_parquet('{dataset}/data-*.parquet', filename=true, hive_partitioning=false)"
    rows = duckdb.sql(f"select {columns} from {source} order by filename, file_row_number").fetchall()
    keys = [(row[0], row[1]) for row in rows]
    wanted = [(index, sample) for index in range(expected.rows) for sample in range(expected.n)]
    if keys != wanted:
        lost, more = Counter(wanted) - Counter(keys), Counter(keys) - Counter(wanted)
        yield f"P1: {lost.total()} rows are lost {_some(lost)} and {more.total()} doubled or invented {_some(more)}"
        if not lost and not more:
            yield "P5: the rows are not in their order"
    statuses = Counter(row[2] for row in rows)
    counts = {"completed": "ok", "failed": "error", "cancelled": "cancelled", "expired": "expired"}
    told = manifest["rows"]
    if told["total"] != len(rows) or any(told[name] != statuses[status] for name, status in counts.items()):
        yield f"P5: the manifest says {told}, the rows are {dict(statuses)}"
    if manifest["status"] not in expected.endings:
        yield f"P1: it ended as {manifest['status']}"
    if set(statuses) - STATUSES:
        yield f"P1: there are statuses {sorted(set(statuses) - STATUSES)}"
    if manifest["status"] == "completed" and statuses["cancelled"] + statuses["expired"]:
        yield f"P1: it is completed, and its rows are {dict(statuses)}"
    yield from (sentence for row in rows if (sentence := _row(row, expected)))


def _row(row: tuple[Any, ...], expected: Expected) -> str | None:
    index, sample, status, code, text, reason, number = row
    if number != index:
        return f"P1: row {index} has the columns of row {number}"
    if (status == "ok") != (text is not None) or (status == "error") != (code is not None):
        return f"P1: row {index} is {status} with text {text!r} and error {code}"
    if status == "ok" and reason not in ("stop", "length"):
        return f"P1: row {index} is ok and ended by {reason}"
    if status == "error" and code != expected.errors.get(index):
        return f"P6: row {index} is blamed: {code}"
    if status == "ok" and text != expected.texts.get((index, sample), text):
        return f"P8: row {index}, sample {sample} has another text than alone"
    return None


def _some(keys: Counter[tuple[int, int]]) -> str:
    return str(sorted(keys)[:5]) if keys else ""


@dataclass(slots=True)
class Published:
    """P3: remembers what every file of a store was when it was first seen."""

    folder: Path
    _seen: dict[str, str] = field(default_factory=dict)

    def look(self) -> list[str]:
        """What has changed since. Files may go; what is being written (``name#1``) is not published yet."""
        wrong = []
        for file in files_below(self.folder):
            name = str(file)
            if "#" in file.name or name.startswith(("_local", "_probe")):
                continue
            try:
                digest = hashlib.sha256((self.folder / file).read_bytes()).hexdigest()
            except OSError:  # gone since
                continue
            if self._seen.setdefault(name, digest) != digest:
                wrong.append(f"P3: {name} has changed")
        return wrong


@dataclass(slots=True)
class Work:
    """What the logs of all processes say of the work that was done; see plugin.py."""

    #: Rows that came back from an engine, and those that came back more than once, counted each further time.
    rows: int = 0
    again: int = 0
    tokens: int = 0
    tokens_again: int = 0
    #: By process: rows that it had begun in batches that it was not the first to commit, and rows that it began again.
    in_hand: dict[int, int] = field(default_factory=dict)
    #: The processes whose engines gave each row (stage, batch, row, sample).
    doers: dict[tuple[str, ...], list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, logs: Path) -> Work:
        work, begun, first = cls(), Counter[tuple[int, tuple[str, ...]]](), dict[tuple[str, str], tuple[float, int]]()
        for path in sorted(logs.glob("*.log")):
            pid = int(path.stem)
            work.in_hand[pid] = 0
            for line in path.read_text().splitlines():
                at, kind, *words = line.split()
                if kind == "begin":
                    begun[pid, tuple(words)] += 1
                elif kind == "commit":
                    # A put that came long after its job had ended can succeed too.
                    first[words[0], words[1]] = min(first.get((words[0], words[1]), (float(at), pid)), (float(at), pid))
                elif kind == "done":
                    work._count(pid, tuple(words[:4]), int(words[4]))
        for (pid, row), times in begun.items():
            # One that lost its lease, and then took the batch again, may have been the first to commit.
            work.in_hand[pid] += times - (first.get((row[0], row[1]), (0.0, 0))[1] == pid)
        return work

    def _count(self, pid: int, row: tuple[str, ...], tokens: int) -> None:
        doers = self.doers.setdefault(row, [])
        self.rows, self.tokens = self.rows + 1, self.tokens + tokens
        if doers:
            self.again, self.tokens_again = self.again + 1, self.tokens_again + tokens
        doers.append(pid)
