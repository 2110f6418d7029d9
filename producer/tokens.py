"""How many tokens the prompts of a source have, and which rows are too long for the model: estimated by characters.

``producer.counting`` has the meter that counts them with the model's tokenizer.
"""

from __future__ import annotations

import sys
from bisect import insort
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from producer.requests import CheckedRow

#: English text in the tokenizers of common models, where nobody has measured more.
CHARS_PER_TOKEN = 4.0

#: What a chat template puts around each message, about: its role and where it begins and ends.
MESSAGE_TOKENS = 4

#: Rows beyond a limit that are kept, the first ones.
_EXAMPLES = 20

#: Bins of lengths: 0 to 15 tokens, 16 to 31, 32 to 63 and so on.
_BINS = 40

WITHOUT_TEMPLATE = "without the chat template"


@dataclass(frozen=True, slots=True, order=True)
class LongRow:
    """A row beyond a limit. ``number`` is its place in the source; ``counted`` says that ``tokens`` is no estimate."""

    number: int
    file: str
    line: int
    tokens: int
    max_tokens: int
    counted: bool


@dataclass(slots=True)
class Over:
    """Rows beyond a limit: how many, of how many that is certain, and the first of them."""

    rows: int = 0
    counted: int = 0
    first: list[LongRow] = field(default_factory=list)

    def add(self, number: int, file: str, line: int, tokens: int, max_tokens: int, counted: bool) -> None:
        self.rows += 1
        self.counted += counted
        if len(self.first) < _EXAMPLES or number < self.first[-1].number:
            insort(self.first, LongRow(number, file, line, tokens, max_tokens, counted))
            del self.first[_EXAMPLES:]

    def to_json(self) -> dict[str, Any]:
        examples = [{name: value for name, value in asdict(row).items() if name != "number"} for row in self.first]
        return {"rows": self.rows, "counted": self.counted, "first": examples}


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a pass found about the lengths of prompts."""

    #: Good rows whose tokens were counted, and those estimated by their characters.
    counted: int
    estimated: int
    #: Tokens of all prompts, and of the longest.
    total: int
    longest: int
    #: Prompt tokens that the samples of all rows take together, and the most that they can generate.
    work: int
    outputs: int
    bins: tuple[int, ...]
    chars_per_token: float
    #: How this is known, for people.
    method: str
    #: Of a sample: how far ``total`` may be from the truth, as a share of it, in 95 of 100 cases.
    error: float | None = None
    too_long: Over = field(default_factory=Over)
    cut: Over = field(default_factory=Over)

    def histogram(self) -> list[tuple[int, int, int]]:
        """``(shortest, longest, rows)`` of each bin, from the first that is not empty to the last."""
        used = [index for index, rows in enumerate(self.bins) if rows]
        span = range(used[0], used[-1] + 1) if used else range(0)
        return [(8 << index if index else 0, (16 << index) - 1, self.bins[index]) for index in span]

    def to_json(self) -> dict[str, Any]:
        """``tokens`` of ``check --json``."""
        return {
            "counted": self.counted,
            "estimated": self.estimated,
            "total": self.total,
            "max": self.longest,
            "histogram": [{"from": low, "to": high, "rows": rows} for low, high, rows in self.histogram()],
            "chars_per_token": round(self.chars_per_token, 3),
            "method": self.method,
            "error": self.error,
        }


def guessed(char_bins: list[int], chars: int, longest: int, outputs: int) -> Tokens:
    """By CHARS_PER_TOKEN, from characters alone; bin ``k`` of them is of 2**(k-1) to 2**k - 1 characters."""
    bins = [0] * _BINS
    for index, rows in enumerate(char_bins):
        # A quarter of the characters: two bits less; and the first token bin takes four bits.
        bins[max(0, index - 6)] += rows
    total, most = (int(-(-number // CHARS_PER_TOKEN)) for number in (chars, longest))
    method = f"estimated at {CHARS_PER_TOKEN:g} characters each"
    return Tokens(0, sum(char_bins), total, most, total, outputs, tuple(bins), CHARS_PER_TOKEN, method)


class Meter:
    """Takes each good row of a pass and estimates its tokens by its characters.

    ``context`` is how many tokens of prompt and output the model takes together; None if nobody knows.
    ``chars_per_token`` is what workers measured, templates and special tokens included; None for a guess.
    """

    def __init__(self, context: int | None = None, chars_per_token: float | None = None) -> None:
        self.context = context
        self._measured = chars_per_token is not None
        self._density = chars_per_token or CHARS_PER_TOKEN
        self._limit = context or sys.maxsize
        self._rows = self._total = self._work = self._outputs = self._longest = 0
        self._chats = 0
        self._bins = [0] * _BINS
        self._too_long, self._cut = Over(), Over()

    def see(self, row: CheckedRow, chars: int) -> None:
        """A good row, whose prompt or messages have so many characters."""
        messages = row.messages
        tokens = ceil(chars / self._density)
        if messages is not None:
            self._chats += 1
            if not self._measured:
                tokens += MESSAGE_TOKENS * len(messages)
        self._rows += 1
        self._take(self._rows, row.file, row.line, tokens, row.max_tokens, row.n, False)

    def finish(self) -> Tokens:
        """What was found; to be called once, after the last row."""
        by = "as workers of this model measured" if self._measured else "a guess"
        method = f"estimated at {self._density:.3g} characters each, {by}"
        if self._chats and not self._measured:
            method += f", {WITHOUT_TEMPLATE}"
        return self._found(0, self._total, method, self._density)

    def _found(self, counted: int, total: int, method: str, density: float, error: float | None = None) -> Tokens:
        # Of a sample the total is better known than the sum of what each row was taken for.
        work = round(self._work * total / self._total) if self._total else 0
        return Tokens(
            counted, self._rows - counted, total, self._longest, work, self._outputs, tuple(self._bins),
            density, method, error, self._too_long, self._cut,
        )  # fmt: skip

    def _take(self, number: int, file: str, line: int, tokens: int, max_tokens: int, n: int, counted: bool) -> None:
        self._total += tokens
        self._bins[(tokens >> 4).bit_length()] += 1
        if tokens > self._longest:
            self._longest = tokens
        if tokens + max_tokens > self._limit:
            # An engine leaves room for one token at least.
            over = self._too_long if tokens >= self._limit else self._cut
            over.add(number, file, line, tokens, max_tokens, counted)
            max_tokens = max(self._limit - tokens, 0)
        self._work += tokens * n
        self._outputs += max_tokens * n
