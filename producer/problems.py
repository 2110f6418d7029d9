"""How the checks of one row say that it is wrong."""

from __future__ import annotations


class RowProblem(Exception):
    """Raised inside the checks of a row. ``code`` is a row error code, ``param`` the column at fault."""

    def __init__(self, reason: str, code: str = "invalid_row", param: str | None = None) -> None:
        self.reason = reason
        self.code = code
        self.param = param
        super().__init__(reason)
