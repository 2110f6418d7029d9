"""The ``promptmill`` command as tests run it, and what it left."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas  # noqa: F401  # before a command, called within this process, tells Arrow to do without it

from producer.cli import main


@dataclass
class Outcome:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    def ok(self) -> Outcome:
        assert self.code == 0, f"exit {self.code}\nstdout: {self.out}\nstderr: {self.err}"
        return self


def promptmill(*arguments: str, plugin: str | None = None) -> list[str]:
    """The installed command, by the interpreter that runs the tests."""
    first = f"import {plugin}; {plugin}.install(); " if plugin else ""
    return [sys.executable, "-c", f"{first}from producer.cli import main; main()", *arguments]


def call(arguments: Sequence[str], environment: Mapping[str, str], folder: Path, stdin: bytes) -> Outcome:
    """``promptmill ARGUMENTS`` within this process: the same code, without the second that a start takes."""
    out, err = _Pipe(b""), _Pipe(b"")
    root = logging.getLogger()
    handlers, level, code = root.handlers[:], root.level, 0
    with (
        patch.dict(os.environ, environment, clear=True),
        patch.multiple(sys, argv=["promptmill", *arguments], stdin=_Pipe(stdin), stdout=out, stderr=err),
        contextlib.chdir(folder),
    ):
        try:
            main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return Outcome(code, out.text(), err.text())


class _Pipe(io.TextIOWrapper):
    """What a command sees as stdin, stdout or stderr; no terminal."""

    def __init__(self, content: bytes) -> None:
        self._bytes = io.BytesIO(content)
        super().__init__(self._bytes, encoding="utf-8", write_through=True)

    def text(self) -> str:
        return self._bytes.getvalue().decode()
