"""The producer: checks sources, submits jobs, watches them, reads their results. Never imports torch."""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers take it; `typing` itself is worth an import only where it is used
if TYPE_CHECKING:
    from producer.client import Client, Job

__all__ = ["Client", "Job"]


def __getattr__(name: str) -> object:
    # Imported when asked for: the command line begins with this package and needs neither.
    if name in __all__:
        from producer import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
