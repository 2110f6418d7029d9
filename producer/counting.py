"""Counts the tokens of prompts with the model's own tokenizer: of all rows, or of a uniform sample of many."""

from __future__ import annotations

import math
from array import array
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from producer.requests import CheckedRow
from producer.tokens import MESSAGE_TOKENS, WITHOUT_TEMPLATE, Meter, Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Prompts that are counted in one call, on all cores; it returns some 200 bytes for each of their tokens.
_CHUNK_ROWS, _CHUNK_CHARS = 2_000, 1 << 19
#: Longer prompts are counted in pieces of so many characters: a few tokens too many for each.
_PIECE_CHARS = 1 << 18

#: The most that a sample holds: a few seconds of counting.
_SAMPLE_ROWS, _SAMPLE_CHARS = 100_000, 4_000_000
#: Characters of rows beside the sample that are counted because they are about as long as the context.
_NEAR_CHARS = 4_000_000
#: Longer prompts are no part of a sample, for one of them can be as much as all others: so many characters of them are
#: counted, beyond which they are taken for as dense as the sample.
_HUGE_CHARS, _ALL_HUGE_CHARS = 1 << 16, 1 << 24
_NEAR = 0.5, 2.0


class _Sample:
    """Characters and tokens of a uniform sample: each time it is full, half of it goes, and half as many rows come.

    So it needs to know neither how many rows there will be, nor to keep their text. Without ``bounded`` all are in it.
    """

    def __init__(self, bounded: bool) -> None:
        self.rows = self.chars = self.tokens = 0
        self.share = 1.0
        self._bounded = bounded
        self._random = Random(0)  # the same file has the same sample
        self._chars, self._tokens = array("q"), array("q")

    def wants(self) -> bool:
        """Whether the next row is to be in it."""
        return self.share == 1.0 or self._random.random() < self.share

    def add(self, chars: int, tokens: int) -> None:
        self.rows, self.chars, self.tokens = self.rows + 1, self.chars + chars, self.tokens + tokens
        if self._bounded:
            self._chars.append(chars)
            self._tokens.append(tokens)

    def thin(self) -> None:
        """To be called when all rows that it wanted were added."""
        while self._bounded and self.rows > 1 and (self.rows > _SAMPLE_ROWS or self.chars > _SAMPLE_CHARS):
            pairs = [pair for pair in zip(self._chars, self._tokens, strict=True) if self._random.random() < 0.5]
            self.share /= 2
            self._chars, self._tokens = array("q", (c for c, _ in pairs)), array("q", (t for _, t in pairs))
            self.rows, self.chars, self.tokens = len(pairs), sum(self._chars), sum(self._tokens)

    @property
    def density(self) -> float | None:
        """Characters for each token; None of an empty sample."""
        return self.chars / self.tokens if self.tokens else None

    @property
    def error(self) -> float | None:
        """Of the ratio estimate of all tokens by all characters: 1.96 standard errors, as a share of it."""
        if self.rows < 2 or not self.tokens:
            return None
        ratio = self.tokens / self.chars
        squares = sum((t - ratio * c) ** 2 for c, t in zip(self._chars, self._tokens, strict=True))
        return 1.96 * math.sqrt(squares / (self.rows - 1) / self.rows) / (self.tokens / self.rows)


class _Waiting(NamedTuple):
    """A row that is counted with the next chunk."""

    number: int
    file: str
    line: int
    text: str
    #: Special tokens, or what a chat template adds.
    more: int
    max_tokens: int
    n: int
    sampled: bool


class CountingMeter(Meter):
    """Takes each good row of a pass and counts its tokens; with ``every`` also where there are very many.

    Otherwise a sample is counted, and besides it rows about as long as the context, while they are not too many; the
    others are taken for as dense as the sample. Chat messages are counted without their template.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, context: int | None = None, *, every: bool = False) -> None:
        super().__init__(context)
        self._tokenizer, self._name = tokenizer, name
        self._special = tokenizer.num_special_tokens_to_add(False)
        self._bounded = not every
        self._sample = _Sample(bounded=not every)
        self._near_chars = _NEAR_CHARS if context else 0
        self._waiting: list[_Waiting] = []
        self._waiting_chars = self._counted = self._counted_chars = self._counted_tokens = 0
        # Of all rows: characters, and what special tokens and templates add. Of those that are no part of the sample:
        # their tokens, and the characters that may still be counted.
        self._chars = self._more = self._huge = self._huge_chars = 0
        self._huge_left = _ALL_HUGE_CHARS
        #: Rows that the tokenizer failed on.
        self._failed = 0

    def see(self, row: CheckedRow, chars: int) -> None:
        self._rows += 1
        self._chars += chars
        messages = row.messages
        if messages is not None:
            self._chats += 1
        more = self._special if messages is None else MESSAGE_TOKENS * len(messages)
        self._more += more
        huge = chars > _HUGE_CHARS
        sampled = not huge and self._sample.wants()
        if not sampled:
            if not self._counted:
                self._count()  # so that it is known how dense prompts are
            tokens = math.ceil(chars / self._density)
            if not (self._is_counted(chars) if huge else self._is_near(tokens + more, chars)):
                self._huge += tokens if huge else 0
                self._take(self._rows, row.file, row.line, tokens + more, row.max_tokens, row.n, False)
                return
        text = row.prompt if messages is None else "\n".join(message["content"] for message in messages)
        self._waiting.append(_Waiting(self._rows, row.file, row.line, text or "", more, row.max_tokens, row.n, sampled))
        self._waiting_chars += chars
        if self._waiting_chars >= _CHUNK_CHARS or len(self._waiting) >= _CHUNK_ROWS:
            self._count()

    def finish(self) -> Tokens:
        self._count()
        how = f", {WITHOUT_TEMPLATE}" if self._chats else ""
        if self._failed:
            how += f" (it failed on {self._failed:,} of them: error rows, tokenizer_error)"
        total = self._total
        if self._counted == self._rows:
            method = f"counted with {self._name}{how}"
            return self._found(self._counted, total, method, self._chars / total if total else self._density)
        sample, error = self._sample, self._sample.error
        total = round((self._chars - self._huge_chars) / self._density) + self._huge + self._more
        within, rows = ("", self._counted) if error is None else (f" within {100 * error:.2g} %", sample.rows)
        method = f"estimated{within} from {rows:,} rows counted with {self._name}{how}; --exact-tokens counts all"
        return self._found(self._counted, total, method, self._chars / total, error)

    def _is_near(self, tokens: int, chars: int) -> bool:
        """Whether the row is one of those at the limit that are still counted."""
        low, high = _NEAR
        if self._near_chars < chars or not low * self._limit < tokens < high * self._limit:
            return False
        self._near_chars -= chars
        return True

    def _is_counted(self, chars: int) -> bool:
        """Whether a huge row is counted."""
        self._huge_chars += chars
        if self._bounded and self._huge_left <= 0:
            return False
        self._huge_left -= chars
        return True

    def _count(self) -> None:
        waiting, self._waiting, self._waiting_chars = self._waiting, [], 0
        for row, tokens in zip(waiting, self._lengths([row.text for row in waiting]), strict=True):
            self._counted += 1
            self._counted_chars += len(row.text)
            self._counted_tokens += tokens
            if row.sampled:
                self._sample.add(len(row.text), tokens)
            elif len(row.text) > _HUGE_CHARS:
                self._huge += tokens
            self._take(row.number, row.file, row.line, tokens + row.more, row.max_tokens, row.n, True)
        self._sample.thin()
        chars, tokens = self._counted_chars, self._counted_tokens
        self._density = self._sample.density or (chars / tokens if tokens else self._density)

    def _lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text, special ones left out."""
        try:
            counts = iter(self._encode([text for text in texts if len(text) <= _PIECE_CHARS]))
        except Exception:  # it has no exception type of its own, and does not say of which text it is
            return [self._length(text) for text in texts]
        return [next(counts) if len(text) <= _PIECE_CHARS else self._length(text) for text in texts]

    def _length(self, text: str) -> int:
        pieces = (text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS))
        try:
            return sum(self._encode([piece])[0] for piece in pieces)
        except Exception:
            self._failed += 1
            return math.ceil(len(text) / self._density)

    def _encode(self, texts: list[str]) -> list[int]:
        return list(map(len, self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)))
