"""What every part of the ledger stands on: its client, its scripts, and the names of its keys."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Self, TypeVar

import redis

from jobs.errors import LayoutError, UnknownJobError
from jobs.job_file import JOB_VERSIONS
from jobs.ledger import connection, keys
from jobs.ledger.replies import text

_T = TypeVar("_T")

#: Batches, jobs or workers that one script call handles at most, so that no script holds Redis up.
CHUNK = 500


class LedgerBase:
    """A client of one store's keys."""

    def __init__(self, redis: redis.Redis, store_id: str, *, lease_s: float = 60.0, sweep_s: float = 5.0) -> None:
        self.store_id = store_id
        self.lease_s = lease_s
        self.sweep_s = sweep_s
        self._reads = set(map(str, JOB_VERSIONS))
        self._redis = redis
        self._scripts = connection.Scripts(redis, store_id)

    @classmethod
    def connect(
        cls, url: str, store_id: str, *, lease_s: float = 60.0, sweep_s: float = 5.0, leads: bool = False
    ) -> Self:
        """The ledger at ``url``, which has answered. Raises InputError for a URL that is none, and LayoutError."""
        ledger = cls(connection.connect(url), store_id, lease_s=lease_s, sweep_s=sweep_s)
        ledger.check_layout(leads=leads)
        return ledger

    def check_layout(self, *, leads: bool = False) -> None:
        """Raises LayoutError where programs of another release keep the state of this store's jobs in another layout.

        A worker ``leads``: from an earlier layout it goes on to its own, which begins empty and learns the jobs from
        the store. Workers of the earlier release find out here, and end; producers follow.
        """
        reply = self._command("GET", keys.layout(self.store_id))
        found = keys.LAYOUT if reply is None else int(text(reply))
        where = f"Redis at {connection.address(self._redis)} holds the state of this store's jobs as"
        if found > keys.LAYOUT:
            raise LayoutError(f"{where} a later release keeps it: upgrade promptmill here")
        if leads and (reply is None or found < keys.LAYOUT):
            self._command("SET", keys.layout(self.store_id), keys.LAYOUT)
        elif found < keys.LAYOUT:
            raise LayoutError(f"{where} an earlier release keeps it: upgrade the workers first")

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def _key(self, name: str, *parts: str) -> str:
        return keys.key(self.store_id, name, *parts)

    def _command(self, *args: Any) -> Any:
        """A single command that may run twice."""
        with connection.explained(self._redis):
            return connection.once_more(lambda: self._redis.execute_command(*args))  # type: ignore[no-untyped-call]

    def _hash(self, name: str) -> dict[str, str]:
        return {text(field): text(value) for field, value in self._command("HGETALL", name).items()}


def unknown_job(job: str) -> UnknownJobError:
    return UnknownJobError(f"no job {job} is known here: `promptmill list` shows the jobs of this store")


def chunks(items: Iterator[_T]) -> Iterator[list[_T]]:
    while chunk := list(islice(items, CHUNK)):
        yield chunk
