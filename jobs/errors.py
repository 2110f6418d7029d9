"""Every error that Promptmill raises on purpose.

::

    PromptmillError                 exit 70
    ├── InputError                  exit 2    what the user gave is wrong
    │   ├── SourceError                       ... in a source, with file and line
    │   ├── JobConflictError                  the job id is taken by other work
    │   └── UnknownJobError                   no such job in this store
    ├── UnavailableError            exit 3    Redis, the store or a job cannot be used
    │   ├── JobVersionError                   a program of another version wrote the job
    │   ├── RedisUnavailableError
    │   │   ├── LayoutError                   a program of another version works there
    │   │   └── RedisFullError                it has no memory for more
    │   └── StoreUnavailableError
    │       ├── ForeignStoreError             it belongs to something else
    │       └── WrongStoreError               it is not the one that has to be there
    ├── JobNotCompletedError        exit 1    a job that was waited for ended otherwise
    ├── LeaseLostError                        the work of a lease is to be dropped
    ├── NotFoundError                         no such object in the store
    ├── DamagedFileError            exit 3    an object in the store cannot be read
    └── ModelError                  exit 2    a model cannot be loaded or served

The message of each says what was wrong, where, and what to do; commands print it as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = [
    "DamagedFileError",
    "ForeignStoreError",
    "InputError",
    "JobConflictError",
    "JobNotCompletedError",
    "JobVersionError",
    "LayoutError",
    "LeaseLostError",
    "ModelError",
    "NotFoundError",
    "Problem",
    "PromptmillError",
    "RedisFullError",
    "RedisUnavailableError",
    "SourceError",
    "StoreUnavailableError",
    "UnavailableError",
    "UnknownJobError",
    "WrongStoreError",
    "one_line",
]

#: Characters of a message: what a file or a flag holds may be of any length.
_LONGEST, _TAIL = 1_000, 200


#: User and password of a URL.
_LOGIN = re.compile(r"(?<=://)[^/\s@]*:[^/\s]*@")


def first_line(error: BaseException) -> str:
    """What an error of a library says, without what it dumps below its first line, and without the logins of URLs."""
    lines = str(error).strip().splitlines()
    return _LOGIN.sub("***@", lines[0]) if lines else type(error).__name__


def one_line(text: str) -> str:
    """``text`` as one line that any terminal and file takes.

    Names and values of others are in it: their control characters and lone surrogates are escaped, and of a long text
    the middle is left out.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - _TAIL]} ... {text[-_TAIL:]}"
    if text.isprintable():
        return text
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


class PromptmillError(Exception):
    """Raised when something fails in a way that Promptmill foresees; the root of the tree."""

    exit_code = 70


class InputError(PromptmillError):
    """Raised when an argument, a setting or a job id is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a source: ``file:line: reason``.

    ``line`` is 1-based and None where the whole file is meant; ``code`` is a row error code of
    docs/results.md; ``param`` names the column or parameter at fault, if one is. All are one line each.
    """

    file: str
    line: int | None
    reason: str
    code: str = "invalid_row"
    param: str | None = None

    def __post_init__(self) -> None:
        for name in ("file", "reason", "param"):
            text = getattr(self, name)
            if text is not None:
                object.__setattr__(self, name, one_line(text))

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.reason}"


class SourceError(InputError):
    """Raised when a source has problems; ``problems`` holds the first of them, ``total`` counts all."""

    def __init__(self, problems: list[Problem], total: int | None = None) -> None:
        self.problems = problems
        self.total = len(problems) if total is None else total
        super().__init__("\n".join(str(problem) for problem in problems))


class JobConflictError(InputError):
    """Raised when a job id is taken by other work, or was used by a deleted job."""


class UnknownJobError(InputError):
    """Raised when the store holds no job of that id."""


class UnavailableError(PromptmillError):
    """Raised when Redis or the store cannot be reached, refuses, or is another one's."""

    exit_code = 3


class JobVersionError(UnavailableError):
    """Raised when a job's files are of a version that this program does not read: it is left to those that do."""


class RedisUnavailableError(UnavailableError):
    """Raised when Redis cannot be reached or refuses."""


class LayoutError(RedisUnavailableError):
    """Raised when Redis holds the state of a store's jobs as programs of another version keep it."""


class RedisFullError(RedisUnavailableError):
    """Raised when Redis has no memory for anything new. What ends something is still done."""


class StoreUnavailableError(UnavailableError):
    """Raised when the store cannot be reached, cannot be written, or ignores put-if-absent."""


class ForeignStoreError(StoreUnavailableError):
    """Raised when the place that the settings name belongs to something else."""


class WrongStoreError(StoreUnavailableError):
    """Raised when PROMPTMILL_STORE_ID says which store has to be at a place, and it is not."""


class JobNotCompletedError(PromptmillError):
    """Raised when a job that was waited for ended otherwise than completed."""

    exit_code = 1


class LeaseLostError(PromptmillError):
    """Raised when the work of a lease is to be dropped: another has it, or this process is ending."""


class NotFoundError(PromptmillError):
    """Raised when the store has no object of that name."""


class DamagedFileError(PromptmillError):
    """Raised when an object in the store is there but cannot be read as what its name says."""

    exit_code = 3


class ModelError(PromptmillError):
    """Raised when a model cannot be loaded or served."""

    exit_code = 2
