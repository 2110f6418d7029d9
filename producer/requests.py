"""Checked requests on their way into batches: one as a row, many as columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import mul
from typing import Any, NamedTuple

from jobs.errors import Problem
from jobs.spec import SamplingParams
from producer.columns import Own


class CheckedRow(NamedTuple):
    """A request as it is staged. Immutable; a named tuple, for a frozen dataclass takes far longer to make.

    Either ``prompt`` or ``messages`` is set, or ``problem`` is: then the row can only become an error row.
    """

    file: str
    line: int
    custom_id: str | None
    prompt: str | None
    messages: list[dict[str, Any]] | None
    #: Sampling parameters that differ from the job's.
    params: dict[str, Any]
    #: Samples and token limit, the job's or the row's own.
    n: int
    max_tokens: int
    #: The row's own columns that are kept.
    own: Own
    problem: Problem | None = None


def error_row(
    problem: Problem,
    sampling: SamplingParams,
    own: Own | None = None,
    custom_id: str | None = None,
) -> CheckedRow:
    """The row that stands for one that cannot run: always a single sample."""
    params = {"n": 1} if sampling.n != 1 else {}
    line = problem.line or 0
    return CheckedRow(problem.file, line, custom_id, None, None, params, 1, sampling.max_tokens, own or {}, problem)


@dataclass(slots=True)
class CheckedRows:
    """Requests that follow each other, a list for each field of CheckedRow."""

    files: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    prompts: list[str | None] = field(default_factory=list)
    messages: list[list[dict[str, Any]] | None] = field(default_factory=list)
    params: list[dict[str, Any]] = field(default_factory=list)
    n: list[int] = field(default_factory=list)
    max_tokens: list[int] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)
    problems: list[Problem | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[CheckedRow]:
        return map(CheckedRow._make, zip(*self._fields(), strict=True))

    @classmethod
    def of(cls, rows: list[CheckedRow]) -> CheckedRows:
        return cls(*map(list, zip(*rows, strict=True)))

    def extend(self, other: CheckedRows) -> None:
        for mine, more in zip(self._fields(), other._fields(), strict=True):
            mine.extend(more)

    def part(self, start: int, end: int | None = None) -> CheckedRows:
        """The rows from ``start`` to before ``end``."""
        return CheckedRows(*(values[start:end] for values in self._fields()))

    def lengths(self) -> list[int]:
        """The characters of each row without a problem."""
        if not any(self.problems) and not any(self.messages):
            return [len(prompt or "") for prompt in self.prompts]
        return [
            len(prompt) if prompt is not None else sum(len(message["content"]) for message in messages or ())
            for prompt, messages, problem in zip(self.prompts, self.messages, self.problems, strict=True)
            if problem is None
        ]

    def output_tokens(self) -> int:
        """The most that the rows without a problem generate: ``n`` x ``max_tokens`` of each."""
        if not any(self.problems):
            return sum(map(mul, self.n, self.max_tokens))
        costs = zip(self.n, self.max_tokens, self.problems, strict=True)
        return sum(n * limit for n, limit, problem in costs if problem is None)

    def _fields(self) -> list[list[Any]]:
        return [self.files, self.lines, self.ids, self.prompts, self.messages, self.params, self.n, self.max_tokens,
                self.own, self.problems]  # fmt: skip
