"""One pass over a source: every row checked, every problem counted, duplicate ids found.

``check`` throws the rows away; a submit stages them while the same pass goes on::

    checking = Checking(source, options)
    for batch in builder.batches(checking.blocks()):
        put(batch)
    checking.report.raise_if_bad()   # only now is anything accepted
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import Problem, SourceError, one_line
from producer.duplicates import DuplicateFinder
from producer.requests import CheckedRows, error_row
from producer.row_places import RowPlaces
from producer.rows import RowChecker, RowOptions
from producer.sources import Source, SourceRow
from producer.tokens import Meter, Tokens, guessed

_BINS = 32


@dataclass(slots=True)
class PromptLengths:
    """Prompt lengths in characters: bin ``k`` counts those of 2**(k-1) to 2**k - 1 characters."""

    bins: list[int] = field(default_factory=lambda: [0] * _BINS)
    total: int = 0
    longest: int = 0

    def histogram(self) -> list[tuple[int, int, int]]:
        """``(shortest, longest, rows)`` of each bin, from the first that is not empty to the last."""
        used = [k for k, count in enumerate(self.bins) if count]
        span = range(used[0], used[-1] + 1) if used else range(0)
        return [(1 << k >> 1, (1 << k) - 1, self.bins[k]) for k in span]


@dataclass(slots=True)
class CheckReport:
    """What a pass found. ``problems`` are the first ones, ``total_problems`` counts all."""

    source: str
    batch_size: int
    skip_invalid: bool = False
    rows: int = 0
    #: Rows that cannot run; with --skip-invalid they become error rows.
    invalid: int = 0
    result_rows: int = 0
    #: The sum of ``max_tokens`` x ``n``: an upper bound of what is generated.
    max_tokens: int = 0
    problems: list[Problem] = field(default_factory=list)
    total_problems: int = 0
    #: Problems that --skip-invalid does not excuse: repeated ids, a file that cannot be read to its end.
    fatal: int = 0
    lengths: PromptLengths = field(default_factory=PromptLengths)
    #: The first requests, rendered: prompts as text, messages as lists.
    shown: list[str | list[dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: What the pass's meter found, if it had one.
    metered: Tokens | None = None

    @property
    def batches(self) -> int:
        return -(-self.rows // self.batch_size)

    @property
    def tokens(self) -> Tokens:
        """As the pass's meter found them; without one, guessed from characters."""
        lengths = self.lengths
        return self.metered or guessed(lengths.bins, lengths.total, lengths.longest, self.max_tokens)

    @property
    def ok(self) -> bool:
        """Whether the rows can be accepted: none is bad, or bad ones are skipped and some are good."""
        if self.skip_invalid:
            return not self.fatal and self.invalid < self.rows
        return not self.total_problems

    def raise_if_bad(self) -> None:
        """Raises SourceError with the first problems unless the rows can be accepted."""
        if not self.ok:
            raise SourceError(self.problems, self.total_problems)

    def to_json(self) -> dict[str, Any]:
        """What ``check --json`` prints, but for the forecast."""
        tokens = self.tokens
        return {
            "source": self.source,
            "ok": self.ok,
            "rows": self.rows,
            "batches": self.batches,
            "result_rows": self.result_rows,
            "invalid": self.invalid,
            "problems": [
                {
                    "file": item.file,
                    "line": item.line,
                    "code": item.code,
                    "param": item.param,
                    "reason": item.reason,
                }
                for item in self.problems
            ],
            "total_problems": self.total_problems,
            "prompt_chars": {
                "total": self.lengths.total,
                "longest": self.lengths.longest,
                "histogram": [{"from": low, "to": high, "rows": rows} for low, high, rows in self.lengths.histogram()],
            },
            "estimated_prompt_tokens": tokens.total,
            "max_completion_tokens": self.max_tokens,
            "tokens": tokens.to_json(),
            "too_long": tokens.too_long.to_json(),
            "cut": tokens.cut.to_json(),
            "shown": self.shown,
            "notes": self.notes,
        }


def check(
    source: Source,
    options: RowOptions,
    *,
    batch_size: int = 256,
    limit_problems: int = 20,
    show: int = 0,
    skip_invalid: bool = False,
    meter: Meter | None = None,
) -> CheckReport:
    """Checks every row of ``source`` and keeps none; ``meter`` is shown all good ones.

    Raises InputError where the options do not fit its columns; what is wrong with rows is in the report.
    """
    checking = Checking(
        source,
        options,
        batch_size=batch_size,
        limit_problems=limit_problems,
        show=show,
        skip_invalid=skip_invalid,
        meter=meter,
    )
    for _ in checking.blocks():
        pass
    return checking.report


class Checking:
    """A pass over a source; ``report`` is complete when ``blocks`` has ended.

    Raises InputError at once where the options do not fit the source's columns.
    """

    def __init__(
        self,
        source: Source,
        options: RowOptions,
        *,
        batch_size: int = 256,
        limit_problems: int = 20,
        show: int = 0,
        skip_invalid: bool = False,
        meter: Meter | None = None,
    ) -> None:
        self.report = CheckReport(one_line(source.name), batch_size, skip_invalid, notes=source.notes)
        self._source = source
        self._options = options
        self._checker = RowChecker(options, source)
        self._limit = limit_problems
        self._show = show
        self._meter = meter
        self._ids = DuplicateFinder()
        self._places = RowPlaces()

    def blocks(self) -> Iterator[CheckedRows]:
        """The rows to stage. With ``skip_invalid``, bad ones are among them; without, none follows a bad one.

        The whole source is read in any case, so that all its problems are found. Raises InputError for a
        column that was named and that no row has; what is wrong with rows is in the report only.
        """
        report = self.report
        for rows in self._checked():
            self._note_ids(rows)
            report.rows += len(rows)
            report.result_rows += sum(rows.n)
            bad = [place for place, problem in enumerate(rows.problems) if problem is not None]
            for place in bad:
                report.invalid += 1
                self._note(rows.problems[place])  # type: ignore[arg-type]
            self._measure(rows)
            if not report.total_problems or report.skip_invalid:
                yield rows
        self._find_duplicates()
        if self._meter is not None:
            report.metered = self._meter.finish()
        if not report.total_problems:
            self._checker.finish()

    def _checked(self) -> Iterator[CheckedRows]:
        try:
            for found in self._source.blocks():
                if isinstance(found, Problem):
                    yield CheckedRows.of([error_row(found, self._options.sampling)])
                else:
                    yield self._checker.check_block(found)
        except SourceError as error:
            for problem in error.problems:
                self._note(problem, fatal=True)

    def _note_ids(self, rows: CheckedRows) -> None:
        """``rows`` are of one file."""
        numbers: Sequence[int] = self._places.add(rows.files[0], rows.lines)
        ids: list[Any] = rows.ids
        if None in ids:
            numbers = [number for number, name in zip(numbers, ids, strict=True) if name is not None]
            ids = [name for name in ids if name is not None]
        if ids:
            self._ids.add(ids, numbers)

    def _measure(self, rows: CheckedRows) -> None:
        report, lengths = self.report, self.report.lengths
        chars = rows.lengths()
        if not chars:
            return
        report.max_tokens += rows.output_tokens()
        lengths.total += sum(chars)
        lengths.longest = max(lengths.longest, *chars)
        for bits, count in Counter(map(int.bit_length, chars)).items():
            lengths.bins[min(bits, _BINS - 1)] += count
        if self._meter is not None or len(report.shown) < self._show:
            self._look_at(rows, chars)

    def _look_at(self, rows: CheckedRows, chars: list[int]) -> None:
        """What looks at each good row; ``chars`` are their lengths."""
        good = [row for row in rows if row.problem is None]
        if self._meter is not None:
            for row, length in zip(good, chars, strict=True):
                self._meter.see(row, length)
        for row in good[: self._show - len(self.report.shown)]:
            self.report.shown.append(row.prompt if row.prompt is not None else row.messages or [])

    def _note(self, problem: Problem, *, fatal: bool = False) -> None:
        report = self.report
        report.total_problems += 1
        report.fatal += fatal
        if len(report.problems) < self._limit:
            report.problems.append(problem)

    def _find_duplicates(self) -> None:
        repeats, count = self._ids.repeats(max(self._limit, 1))
        if not repeats:
            return
        ids = self._ids_at({position for pair in repeats for position in pair})
        for position, earlier in repeats:
            if ids and not self._ids.alike(ids.get(position), ids.get(earlier)):
                reason = "changed while it was read: take it when nothing writes to it any more, or a copy of it"
                raise SourceError([Problem(self._places[position][0], None, reason)])
            if ids and ids[position] != ids[earlier]:
                count -= 1
                continue
            (file, line), (first_file, first_line) = self._places[position], self._places[earlier]
            name = f"id {ids[position]!r}" if ids else "the id"
            first = f"line {first_line}" if first_file == file else f"{first_file}:{first_line}"
            self._note(Problem(file, line, f"{name} repeats the one at {first}"), fatal=True)
        hidden = max(0, count - len(repeats))
        self.report.total_problems += hidden
        self.report.fatal += hidden

    def _ids_at(self, positions: set[int]) -> dict[int, str | None]:
        """The ids of these rows, read once more; none where the source cannot be."""
        if not self._source.rereadable:
            return {}
        found: dict[int, str | None] = {}
        for position, item in enumerate(self._source):
            if position in positions and isinstance(item, SourceRow):
                found[position] = self._checker.check(item).custom_id
                if len(found) == len(positions):
                    break
        return found
