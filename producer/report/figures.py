"""The figures of a job's result rows, added up table by table: nothing here grows with the number of rows."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from producer.report.lengths import LengthCounter, counts
from producer.report.model import Failures, Figures, SampleRow, WorkerShare
from producer.report.timeline import TimelineCounter

#: The columns of the results that figures are made of.
COLUMNS = [
    "row_index", "sample_index", "custom_id", "status", "error_code", "error_message", "finish_reason",
    "prompt_tokens", "completion_tokens", "model_revision", "attempt", "worker", "started_at", "finished_at",
]  # fmt: skip

#: Failed rows that are shown of each code, and the characters of what they say.
_SAMPLES = 5
_CLIPPED = 1_000
#: Revisions that are named: a job has one, unless a worker was lied to.
_REVISIONS = 8


class FigureCounter:
    """Adds up the figures of the rows of a job that was submitted at ``created_at``."""

    def __init__(self, created_at: datetime) -> None:
        self._created = int(created_at.timestamp() * 1e6)
        self._rows = self._repeated = self._carried = self._done = self._tokens = 0
        self._ends: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._samples: dict[str, list[SampleRow]] = {}
        self._prompts, self._completions = LengthCounter(), LengthCounter()
        self._timeline = TimelineCounter()
        self._workers: dict[str, tuple[int, int, int, int]] = {}
        self._revisions: set[str] = set()

    def add(self, table: pa.Table) -> None:
        """``table`` has COLUMNS."""
        self._rows += table.num_rows
        self._add_ends(table)
        self._add_failures(table.filter(pc.is_valid(table["error_code"])))
        completed = table.filter(pc.field("status") == "ok")
        # A prompt counts once, whatever its number of samples.
        self._prompts.add(completed.filter(pc.field("sample_index") == 0)["prompt_tokens"])
        self._completions.add(completed["completion_tokens"])
        self._repeated += table.filter(pc.field("attempt") > 1).num_rows
        if len(self._revisions) < _REVISIONS:
            self._revisions.update(revision for revision, _ in counts(table["model_revision"]))
        self._add_times(_generated(table))

    def _add_ends(self, table: pa.Table) -> None:
        for end, rows in counts(pc.coalesce(table["finish_reason"], table["status"])):
            self._ends[end] += rows

    def _add_failures(self, failed: pa.Table) -> None:
        for code, rows in counts(failed["error_code"]):
            self._errors[code] += rows
            samples = self._samples.setdefault(code, [])
            if len(samples) < _SAMPLES:
                first = failed.filter(pc.field("error_code") == code).slice(0, _SAMPLES - len(samples))
                samples += [_sample(row) for row in first.to_pylist()]

    def _add_times(self, table: pa.Table) -> None:
        own = table.filter(pc.field("finished_at") >= self._created)
        self._carried += table.num_rows - own.num_rows
        self._timeline.add(own)
        self._done += own.num_rows
        self._tokens += pc.sum(own["completion_tokens"]).as_py() or 0
        grouped = own.group_by("worker", use_threads=False).aggregate(
            [([], "count_all"), ("completion_tokens", "sum"), ("started_at", "min"), ("finished_at", "max")]
        )
        for found in grouped.to_pylist():
            if found["worker"] is not None:
                first, last = found["started_at_min"], found["finished_at_max"]
                first = last if first is None else first
                rows, tokens, begun, ended = self._workers.get(found["worker"], (0, 0, first, last))
                self._workers[found["worker"]] = (
                    rows + found["count_all"],
                    tokens + (found["completion_tokens_sum"] or 0),
                    min(begun, first),
                    max(ended, last),
                )

    def figures(self, until: datetime | None = None) -> Figures:
        """What was added up so far. The timeline of a job that runs goes on to ``until``."""
        seconds = self._timeline.seconds
        return Figures(
            rows=self._rows,
            ends=dict(self._ends.most_common()),
            prompt_lengths=self._prompts.lengths(),
            completion_lengths=self._completions.lengths(),
            timeline=self._timeline.timeline(until),
            generating_s=round(seconds, 3),
            rows_per_s=_rate(self._done, seconds),
            tokens_per_s=_rate(self._tokens, seconds),
            failures=tuple(
                Failures(code, rows, tuple(self._samples[code])) for code, rows in self._errors.most_common()
            ),
            workers=tuple(sorted(map(_share, self._workers.items()), key=lambda share: -share.rows)),
            revisions=tuple(sorted(self._revisions)),
            repeated=self._repeated,
            carried=self._carried,
        )


def _generated(table: pa.Table) -> pa.Table:
    """The rows that were done at some time; times as microseconds since the epoch."""
    done = table.select(["worker", "completion_tokens", "started_at", "finished_at"]).filter(
        pc.is_valid(table["finished_at"])
    )
    for name in ("started_at", "finished_at"):
        done = done.set_column(done.schema.get_field_index(name), name, done[name].cast(pa.int64()))
    return done


def _sample(row: dict[str, Any]) -> SampleRow:
    return SampleRow(row["row_index"], row["sample_index"], _clip(row["custom_id"]), _clip(row["error_message"]))


def _clip(text: str | None) -> str | None:
    return text if text is None or len(text) <= _CLIPPED else text[: _CLIPPED - 1] + "…"


def _share(item: tuple[str, tuple[int, int, int, int]]) -> WorkerShare:
    worker, (rows, tokens, first, last) = item
    seconds = (last - first) / 1e6
    begun, ended = (datetime.fromtimestamp(moment / 1e6, UTC) for moment in (first, last))
    return WorkerShare(worker, rows, tokens, begun, ended, _rate(rows, seconds), _rate(tokens, seconds))


def _rate(count: int, seconds: float) -> float:
    return round(count / max(seconds, 1e-3), 3)
