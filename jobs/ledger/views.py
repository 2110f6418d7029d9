"""What there is to see: jobs, workers, the server and its stores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal

import orjson
import redis

from jobs.errors import RedisUnavailableError
from jobs.ledger import connection, keys, replies
from jobs.ledger.base import LedgerBase, chunks
from jobs.ledger.model import JobState, Shown, WorkerInfo
from jobs.ledger.replies import text

#: Seconds that a worker is listed after its last sign of life: three rounds of heartbeats.
WORKER_TTL_S = 30
#: Seconds that what workers of a model have shown is remembered.
SHOWN_TTL_S = 7 * 86_400


class Views(LedgerBase):
    """Questions, and the registrations that answer them."""

    # -- Jobs.

    def job(self, job: str) -> JobState | None:
        """A job, live or ended within 7 days. None if it is unknown."""
        return self._states([job])[0]

    def jobs(self, ids: Iterable[str] | None = None) -> list[JobState]:
        """All jobs, live or ended within 7 days, or those of ``ids`` that are known; newest first."""
        wanted = self.job_ids() if ids is None else ids
        states = [state for chunk in chunks(iter(wanted)) for state in self._states(chunk) if state is not None]
        return sorted(states, key=lambda state: (state.created_at, state.id), reverse=True)

    def job_ids(self, *lists: Literal["live", "ended"]) -> list[str]:
        """The ids of all jobs, live or ended within 7 days, or of those on one of these lists."""
        asked = lists or ("live", "ended")
        names = [text(name) for zset in asked for name in self._command("ZRANGE", self._key(zset), 0, -1)]
        # One that ended in between is in both.
        return [*dict.fromkeys(names)]

    def _states(self, jobs: list[str]) -> list[JobState | None]:
        now, *answers = self._scripts.run_twice("state", *jobs)
        seconds = float(text(now))
        return [replies.job_state(job, seconds, answer) for job, answer in zip(jobs, answers, strict=True)]

    # -- Workers.

    def register(self, worker: WorkerInfo, *, worked: bool = False) -> None:
        """Lists a worker for the next 30 s; to be repeated with every round of heartbeats.

        Where it has ``worked`` since the last, what it has shown is kept for its model too: for SHOWN_TTL_S, with or
        without live workers.
        """
        shown = orjson.dumps(worker.shown)
        fields = {**asdict(worker), "shown": shown, "reads": orjson.dumps(worker.reads)}
        flat = [item for pair in fields.items() for item in pair]
        kept = shown if worked else ""
        self._scripts.run_twice("register", worker.id, WORKER_TTL_S, worker.model, kept, SHOWN_TTL_S, *flat)

    def require_worker(self) -> None:
        """Raises RedisUnavailableError where this user may not take work, which Celery would try again for ever."""
        with connection.explained(self._redis):
            try:
                self._redis.brpop([keys.prefix(self.store_id) + "nobody"], 0.001)
            except redis.exceptions.NoPermissionError as error:
                raise RedisUnavailableError(
                    f"Redis at {connection.address(self._redis)} does not let this user take work: workers log in as "
                    "promptmill-worker (ops/redis/users.acl)"
                ) from error

    def unregister(self, worker_id: str) -> None:
        """Takes a worker off the list at once."""
        self._command("DEL", self._key("worker", worker_id))
        self._command("SREM", self._key("workers"), worker_id)

    def workers(self) -> list[WorkerInfo]:
        """Workers that gave a sign of life within 30 s, by id."""
        names = sorted(text(item) for item in self._command("SMEMBERS", self._key("workers")))
        # One by one they would be a thousand questions of a large fleet.
        hashes = (fields for chunk in chunks(iter(names)) for fields in self._scripts.run_twice("workers", *chunk))
        return [info for fields in hashes if (info := replies.worker_info(replies.mapping(fields)))]

    def shown(self, model: str) -> Shown | None:
        """What the worker of ``model`` showed that was the last to have work; None if none had in seven days."""
        reply = self._command("GET", self._key("shown", model))
        return None if reply is None else replies.shown(text(reply))

    # -- The server and the store.

    def ping(self) -> dict[str, Any]:
        """What the doctor asks of a server: its kind, version, memory in bytes and how it keeps its data."""
        info = self._command("INFO")
        return {
            "server": info.get("server_name", "redis"),
            "version": info.get("valkey_version", info["redis_version"]),
            "run_id": info["run_id"],
            "used_memory": info["used_memory"],
            "maxmemory": info["maxmemory"],
            "maxmemory_policy": info["maxmemory_policy"],
            "appendonly": bool(info["aof_enabled"]),
        }

    def now(self) -> float:
        """The server's clock."""
        seconds, microseconds = (int(item) for item in self._command("TIME"))
        return seconds + microseconds / 1_000_000

    def stores(self) -> dict[str, str]:
        """The stores that use this Redis: id and URI."""
        return self._hash(keys.STORES)

    def register_store(self, uri: str) -> None:
        """Lists this ledger's store for ``stores``; asks first, for a Redis without memory can still be read."""
        known = self._command("HGET", keys.STORES, self.store_id)
        if known is None or text(known) != uri:
            self._command("HSET", keys.STORES, self.store_id, uri)
