"""Where the rows of a source are, by their number: in few bytes, for lines mostly follow each other."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence


class RowPlaces:
    """Takes the file and line of each row as they come; says where a row was.

    Lines do not tell rows apart: a JSON file may have all its rows on one.
    """

    def __init__(self) -> None:
        self._count = 0
        #: Of each piece: the number of its first row, its file, and the lines of its rows.
        self._starts: list[int] = []
        self._files: list[str] = []
        self._lines: list[range | array[int]] = []

    def add(self, file: str, lines: list[int]) -> range:
        """Notes rows of one file. Returns their numbers, the first row's being 0."""
        numbers = range(self._count, self._count + len(lines))
        self._count = numbers.stop
        found = _compact(lines)
        last = self._lines[-1] if self._lines and self._files[-1] == file else None
        if isinstance(found, range) and isinstance(last, range) and last.stop == found.start:
            self._lines[-1] = range(last.start, found.stop)
        else:
            self._starts.append(numbers.start)
            self._files.append(file)
            self._lines.append(found)
        return numbers

    def __getitem__(self, number: int) -> tuple[str, int]:
        piece = bisect_right(self._starts, number) - 1
        return self._files[piece], self._lines[piece][number - self._starts[piece]]


def _compact(lines: Sequence[int]) -> range | array[int]:
    run = range(lines[0], lines[0] + len(lines))
    if lines[-1] == run[-1] and lines == list(run):
        return run
    return array("I" if max(lines) < 1 << 32 else "Q", lines)
