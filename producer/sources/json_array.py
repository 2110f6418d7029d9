"""JSON files: one array of objects, or objects one after the other, however their lines are broken.

The standard library's scanner finds where each element ends; the element is then read as a line of JSON Lines is. An
error in the syntax ends the file: what comes after it cannot be told apart.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from jobs.errors import Problem, SourceError
from producer.columns import TOO_DEEP
from producer.sources import lines
from producer.sources.base import Item
from producer.sources.jsonl import read_object
from producer.sources.lines import DAMAGED, check_start

_BLOCK = 1 << 16
#: So near the end of what was read an error may be the end's doing: no token but a string is longer.
_TOKEN = 64
_SPACE = " \t\n\r"

#: Finds the end of a value. What its numbers and constants are is not its business.
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)


def read_json(stream: BinaryIO, file: str) -> Iterator[Item]:
    """The rows of a JSON file, with the line on which each begins.

    Raises SourceError, with the line and column, for what is no JSON, and for a file that cannot be read.
    """
    text = _Text(stream, file)
    if text.next() != "[":
        while text.next():
            yield from _element(text)
        return
    text.skip(1)
    if text.next() == "]":
        text.skip(1)
    else:
        yield from _element(text)
        while text.next() == ",":
            text.skip(1)
            yield from _element(text)
        if text.next() != "]":
            text.fail("a comma or the closing bracket of the array is missing" if text.next() else _CUT)
        text.skip(1)
    if text.next():
        text.fail("there is text after the closing bracket of the array")


_CUT = "ends in the middle of the array or of a value: the file seems cut"


def _element(text: _Text) -> Iterator[Item]:
    text.next()
    line, element = text.line, text.take_value()
    item = read_object(element.encode(), text.file, line)
    if item is not None:
        yield item


class _Text:
    """The text of a file from a position on, read as it is needed; ``line`` is the position's, from 1."""

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self.file = file
        self.line = 1
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._position = 0
        #: Characters of the position's line that are not in ``_text`` any more.
        self._before = 0
        self._ended = False
        self._begun = False

    def next(self) -> str:
        """The next character that is no space, without taking it; empty at the end."""
        while True:
            text, position = self._text, self._position
            while position < len(text) and text[position] in _SPACE:
                position += 1
            self.skip(position - self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more(_BLOCK):
                return ""

    def skip(self, count: int) -> None:
        end = self._position + count
        newlines = self._text.count("\n", self._position, end)
        if newlines:
            self.line += newlines
            self._before = -self._text.rindex("\n", self._position, end) - 1
        self._position = end

    def take_value(self) -> str:
        """The text of the JSON value at the position, which moves behind it."""
        while True:
            try:
                _, end = _SCANNER.raw_decode(self._text, self._position)
                # A number so near the end of what was read may go on: "1." and "1e+" are read as 1.
                if end + 2 < len(self._text) or not self._more(_BLOCK):
                    value = self._text[self._position : end]
                    self.skip(end - self._position)
                    return value
            except json.JSONDecodeError as error:
                open_string = error.msg.startswith("Unterminated string")
                near_end = open_string or error.pos > len(self._text) - _TOKEN
                if not near_end or not self._more(max(_BLOCK, len(self._text) - self._position)):
                    self.skip(error.pos - self._position)
                    cut = open_string or self._position >= len(self._text.rstrip(_SPACE))
                    self.fail(_CUT if cut else f"malformed JSON: {error.msg}")
            except RecursionError:
                self.fail(TOO_DEEP)

    def fail(self, reason: str) -> NoReturn:
        column = self._position + self._before + 1
        raise SourceError([Problem(self.file, self.line, f"{reason} (column {column})")])

    def _more(self, size: int) -> bool:
        """Read on; False at the end of the file. What was taken is forgotten."""
        if self._ended:
            return False
        if len(self._text) - self._position > lines.MAX_LINE:
            self.fail(f"the value that begins here is longer than {lines.MAX_LINE >> 20} MiB")
        read = self._read(size)
        if read is None:
            return False
        self._before += self._position
        self._text, self._position = self._text[self._position :] + read, 0
        return True

    def _read(self, size: int) -> str | None:
        """More text, which may be a part of a character and so empty; None at the end of the file."""
        try:
            block = self._stream.read(size)
            if block and not self._begun:
                self._begun = True
                block = check_start(block, self.file) or b" "
            self._ended = not block
            text = self._decode(block, final=self._ended)
            return None if self._ended and not text else text
        except UnicodeDecodeError as error:
            line = self.line + error.object[: error.start].count(b"\n") + self._text.count("\n", self._position)
            raise SourceError([Problem(self.file, line, lines.not_utf8(error, self.file, of_line=False))]) from error
        except DAMAGED as error:
            raise SourceError([Problem(self.file, None, lines.DAMAGED_TEXT)]) from error
        except OSError as error:
            raise SourceError([Problem(self.file, None, f"cannot be read: {error.strerror or error}")]) from error
