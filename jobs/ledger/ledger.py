"""The state of all jobs of one store in Redis. Each transition is one Lua script, so each is atomic.

The store is the truth and the ledger its index: what is lost here, ``restore`` brings back from the parts.
Times are those of Redis, in seconds since the epoch.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from itertools import count, islice
from typing import Any, Literal, TypeVar

import orjson
import redis

from jobs.errors import InputError, RedisFullError, RedisUnavailableError, UnknownJobError
from jobs.ledger import connection, keys, replies
from jobs.ledger.model import Beat, Claim, Finished, JobState, LeaseState, Release, Shown, Sweep, WorkerInfo
from jobs.ledger.replies import text
from jobs.results import PartCounts
from jobs.spec import JobFile, Retry, Status

_T = TypeVar("_T")

#: Seconds that a worker is listed after its last sign of life: three rounds of heartbeats.
WORKER_TTL_S = 30
#: Seconds that what workers of a model have shown is remembered.
SHOWN_TTL_S = 7 * 86_400
#: Leases and deadlines that one sweep handles at most, so that no script holds Redis up.
SWEEP_LIMIT = 1_000
#: Batches, or jobs, that one script call handles at most, for the same reason.
CHUNK = 500
#: Live jobs that one look for claimable batches takes in: the first few most often have enough.
LOOK = 100
#: Of ``sweep_s``, how long one sweeper keeps the others out: less than 1, or rounds would be missed.
SWEEP_LOCK_RATIO = 0.8


class Ledger:
    """One store's jobs, leases and workers. Safe to use from many threads.

    Every method raises RedisUnavailableError where Redis cannot be reached or refuses.
    """

    def __init__(self, redis: redis.Redis, store_id: str, *, lease_s: float = 60.0, sweep_s: float = 5.0) -> None:
        self.store_id = store_id
        self.lease_s = lease_s
        self.sweep_s = sweep_s
        self._redis = redis
        self._scripts = connection.Scripts(redis, store_id)

    @classmethod
    def connect(cls, url: str, store_id: str, *, lease_s: float = 60.0, sweep_s: float = 5.0) -> Ledger:
        """The ledger at ``url``, which has answered a ping. Raises InputError for a URL that is none."""
        ledger = cls(connection.connect(url), store_id, lease_s=lease_s, sweep_s=sweep_s)
        ledger._command("PING")
        return ledger

    # -- Jobs: their beginning, their end, and what people do to them.

    def accept(self, job: JobFile) -> bool:
        """Lists a job whose file is in the store. False if it was known already, in whatever state."""
        return self._accept(job, None)

    def _accept(self, job: JobFile, fingerprint: str | None) -> bool:
        spec = job.spec
        fields: dict[str, Any] = {
            "model": spec.model,
            "stage": job.stage,
            "priority": spec.priority,
            "labels": orjson.dumps(spec.labels),
            "total": job.result_rows,
            "batches": job.batches,
            "cost": job.batch_cost,
            "max_error_rate": spec.max_error_rate,
            **({"fingerprint": fingerprint} if fingerprint else {}),
            **(_carried(job.retry) if job.retry else {}),
        }
        flat = [item for pair in fields.items() for item in pair]
        errors = orjson.dumps(job.retry.carried.errors if job.retry else {})
        times = _seconds(job.created_at), _seconds(spec.deadline)
        reply = self._scripts.run_twice("accept", job.id, *times, errors, *flat)
        return bool(reply)

    def restore(self, job: JobFile, done: dict[int, PartCounts], fingerprint: str | None = None) -> None:
        """Lists the job if it is unknown, and marks ``done`` the batches whose parts are in the store.

        A job that no worker has begun is pinned to the weights ``fingerprint``. Merges: what the ledger knows of
        the job stays, a batch that is done already is not counted again. Rows that a retry carried over are counted
        from its acceptance on.
        """
        pin = fingerprint or ""
        # Asked first: a Redis without memory refuses to accept, yet can note what is done.
        if self._scripts.run_twice("restore", job.id, pin) is None:
            self._accept(job, fingerprint)
        for chunk in _chunks(iter(done.items())):
            flat = [item for batch, counts in chunk for item in (batch, orjson.dumps(counts.generated))]
            self._scripts.run_twice("restore", job.id, pin, *flat)

    def done(self, job: str) -> set[int]:
        """The finished batches of a live job; none of a job that is unknown or has ended."""
        return set(self._scripts.run_twice("done", job))

    def pause(self, job: str, reason: str | None = None) -> Status:
        """No more claims; leased batches go on. Raises UnknownJobError, InputError if the job is ending."""
        return self._steer("pause", job, "paused", reason or "")

    def resume(self, job: str) -> Status:
        """Claims go on; rows that failed before no longer count to the error rate. Raises as ``pause``."""
        return self._steer("resume", job, "resumed")

    def priority(self, job: str, n: int) -> Status:
        """From the next claim on the job has the weight 2**n. Raises UnknownJobError and InputError."""
        if not -5 <= n <= 5:
            raise InputError(f"priority {n} is not allowed: give a number from -5 to 5")
        return self._steer("priority", job, "given a priority", n)

    def _steer(self, name: str, job: str, done: str, *args: Any) -> Status:
        reply = self._scripts.run_twice(name, job, *args)
        if not reply:
            raise _unknown(job)
        allowed, status = int(reply[0]), Status(text(reply[1]))
        if not allowed:
            raise InputError(f"job {job} is {status} and can no longer be {done}")
        return status

    def cancel(self, job: str) -> Status:
        """The job's status from now on: cancelling, unless its batches are all done or it has ended.

        Raises UnknownJobError.
        """
        return self._stop(job, Status.CANCELLED)

    def expire(self, job: str) -> Status:
        """As ``cancel``, for a job whose deadline has passed: it will end as expired."""
        return self._stop(job, Status.EXPIRED)

    def _stop(self, job: str, ending: Status) -> Status:
        reply = self._scripts.run_twice("stop", job, ending)
        if reply is None:
            raise _unknown(job)
        return Status(text(reply))

    def finalized(self, job: str, ending: Status, counts: PartCounts, token: str | None) -> None:
        """The job's dataset is whole: it ends, and a summary remains for 7 days.

        Accepted from anyone, whoever holds the lease (``token`` is not compared): the store is the truth.
        """
        del token
        self._scripts.run_twice("finalized", job, ending, orjson.dumps(counts), orjson.dumps(counts.errors))

    def reopen(self, job: str, batches: list[int], counts: PartCounts) -> bool:
        """Has finished batches of a finalizing job done again; ``counts`` are those of the parts that remain.

        False if the job is not finalizing: nothing is changed then.
        """
        reply = self._scripts.run_twice(
            "reopen", job, orjson.dumps(counts), orjson.dumps(counts.errors), *batches[:CHUNK]
        )
        return bool(reply)

    def fail(self, job: str, reason: str) -> None:
        """Ends a job that cannot run at all: its job file or input cannot be read."""
        self._scripts.run_twice("fail", job, reason)

    def forget(self, job: str) -> None:
        """Removes everything of a job."""
        self._scripts.run_twice("forget", job)

    # -- Leases: what workers do.

    def claim(self, worker: WorkerInfo) -> Claim | None:
        """Leases the next piece of work for this worker, by weighted fair share. None if there is none.

        Where Redis has no memory for more work, jobs are still ended: that gives some back.
        """
        token = secrets.token_hex(8)
        # Sent once: were the answer lost and the claim repeated, the first lease would wait for its expiry.
        try:
            reply = self._scripts.run("claim", worker.model, worker.fingerprint, worker.id, token, self.lease_s)
        except RedisFullError:
            if ending := self.claim_finalize(owner=worker.id):
                return ending
            raise
        return replies.claim(reply)

    def claim_finalize(self, job: str | None = None, owner: str = "") -> Claim | None:
        """Leases the finalization of ``job``, or of any job that waits for it. None if none waits."""
        token = secrets.token_hex(8)
        reply = self._scripts.run("claim_finalize", job or "", owner, token, self.lease_s)
        return replies.claim(reply)

    def heartbeat(self, beats: list[Beat], owner: str = "") -> dict[tuple[str, int], LeaseState]:
        """Extends leases, and revives those that expired while nobody took them. By ``(job, batch)``."""
        states: dict[tuple[str, int], LeaseState] = {}
        for chunk in _chunks(iter(beats)):
            flat = [item for b in chunk for item in (b.job, b.batch, b.token, b.rows, b.tokens)]
            reply = self._scripts.run_twice("heartbeat", self.lease_s, owner, *flat)
            for beat, state in zip(chunk, reply, strict=True):
                states[beat.job, beat.batch] = LeaseState(text(state))
        return states

    def finish(self, job: str, batch: int, token: str | None, counts: PartCounts) -> Finished:
        """Notes that a batch's part is in the store, once. Accepted from anyone: ``token`` is not compared.

        Raises UnknownJobError where the ledger does not know the job: recover it from the store.
        """
        del token
        reply = self._scripts.run_twice("finish", job, batch, orjson.dumps(counts.generated))
        if reply[0] == -1:
            raise _unknown(job)
        if reply[0] == -2:
            raise InputError(f"job {job} has no batch {batch}")
        return Finished(first=bool(reply[0]), finalize=bool(reply[1]))

    def release(self, job: str, batch: int, token: str, how: Release = Release.RELEASED) -> None:
        """Gives a lease back unfinished; later claims tell ``how``. Nothing happens if it is not held."""
        self._scripts.run_twice("release", job, batch, token, how)

    def suspect(self, job: str, batch: int, token: str, row: int) -> bool:
        """Notes that a row of a leased batch is about to run alone: should the lease end now, it counts a crash of it.

        False if the lease is not held.
        """
        return bool(self._scripts.run_twice("suspect", job, batch, token, row))

    def sweep(self, owner: str) -> Sweep | None:
        """One round of upkeep: expired leases go back, deadlines fire. None while another's is recent.

        ``permits`` names every model in use and how many permits would get it going again: none where
        a claim was made within ``sweep_s``, else enough for the free slots of its workers (one at least: a
        worker may be about to register), never more than there is work. Queued ones are not subtracted.
        """
        lock_ms = max(int(self.sweep_s * 1000 * SWEEP_LOCK_RATIO), 1)
        reply = self._scripts.run("sweep", owner, lock_ms, SWEEP_LIMIT)
        if reply is None:
            return None
        returned, expired, chains = ([text(item) for item in items] for items in (reply[0], reply[1], reply[3]))
        return Sweep(
            [(job, int(batch)) for job, batch in zip(returned[::2], returned[1::2], strict=True)],
            expired,
            self._permits(float(text(reply[2])), chains),
        )

    def _permits(self, now: float, chains: list[str]) -> dict[str, int]:
        """How many permits each model is short of; ``chains`` is what sweep.lua says of them."""
        due = dict(zip(chains[::3], map(int, chains[1::3]), strict=True))
        claimed = dict(zip(chains[::3], chains[2::3], strict=True))
        stalled = [model for model, last in claimed.items() if not last or now - float(last) >= self.sweep_s]
        workers = self.workers() if stalled else []
        slots = {
            model: max(1, sum(max(w.slots - w.in_hand, 0) for w in workers if w.model == model)) for model in stalled
        }
        batches = self._backlog(slots)
        return {model: min(batches[model] + due[model], slots[model]) if model in slots else 0 for model in due}

    def _backlog(self, wanted: Mapping[str, float]) -> dict[str, int]:
        """Claimable batches of models. Counts no further once it has found as many as are wanted of each."""
        found = dict.fromkeys(wanted, 0)
        for start in count(0, LOOK):
            if all(found[model] >= enough for model, enough in wanted.items()):
                break
            seen, *flat = self._scripts.run_twice("backlog", start, LOOK)
            for model, batches in zip(map(text, flat[::2]), flat[1::2], strict=True):
                if model in found:
                    found[model] += batches
            if seen < LOOK:
                break
        return found

    # -- Views.

    def job(self, job: str) -> JobState | None:
        """A job, live or ended within 7 days. None if it is unknown."""
        return self._states([job])[0]

    def jobs(self, ids: Iterable[str] | None = None) -> list[JobState]:
        """All jobs, live or ended within 7 days, or those of ``ids`` that are known; newest first."""
        wanted = self.job_ids() if ids is None else ids
        states = [state for chunk in _chunks(iter(wanted)) for state in self._states(chunk) if state is not None]
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

    def claimable(self, model: str, enough: float = math.inf) -> int:
        """Batches of the model that could be claimed now, or a number of them that is ``enough``."""
        return self._backlog({model: enough})[model]

    def has_work(self, worker: WorkerInfo) -> bool:
        """Whether a claim of this worker would find anything now, however many jobs there are."""
        pinned = self._key("pinned", worker.fingerprint, worker.model)
        return bool(
            self._command("EXISTS", self._key("unpinned", worker.model), pinned, self._key("due", worker.model))
        )

    def queue_length(self, queue: str) -> int:
        """Permits that wait in a Celery queue; ``queue`` is the whole name of its Redis list."""
        return int(self._command("LLEN", queue))

    # -- Workers.

    def register(self, worker: WorkerInfo, *, worked: bool = False) -> None:
        """Lists a worker for the next 30 s; to be repeated with every round of heartbeats.

        Where it has ``worked`` since the last, what it has shown is kept for its model too: for SHOWN_TTL_S, with or
        without live workers.
        """
        shown = orjson.dumps(worker.shown)
        flat = [item for pair in {**asdict(worker), "shown": shown}.items() for item in pair]
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
        found = []
        for worker_id in sorted(text(item) for item in self._command("SMEMBERS", self._key("workers"))):
            fields = self._hash(self._key("worker", worker_id))
            if not fields:
                self._command("SREM", self._key("workers"), worker_id)
            elif info := replies.worker_info(fields):
                found.append(info)
        return found

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

    def needs_recover(self) -> bool:
        """Whether this Redis may have forgotten jobs: it was flushed, or restarted since ``recovered``."""
        if not self._command("EXISTS", self._key("epoch")):
            return True
        recorded = self._command("GET", self._key("run_id"))
        return recorded is None or text(recorded) != self._run_id()

    def recovered(self) -> None:
        """Notes that every job of the store is listed."""
        self._command("SET", self._key("run_id"), self._run_id())
        self._command("SET", self._key("epoch"), secrets.token_hex(8), "NX")

    def _run_id(self) -> str:
        return text(self._command("INFO", "server")["run_id"])

    def stores(self) -> dict[str, str]:
        """The stores that use this Redis: id and URI."""
        return self._hash(keys.STORES)

    def register_store(self, uri: str) -> None:
        """Lists this ledger's store for ``stores``; asks first, for a Redis without memory can still be read."""
        known = self._command("HGET", keys.STORES, self.store_id)
        if known is None or text(known) != uri:
            self._command("HSET", keys.STORES, self.store_id, uri)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    # -- Helpers.

    def _key(self, name: str, *parts: str) -> str:
        return keys.key(self.store_id, name, *parts)

    def _command(self, *args: Any) -> Any:
        """A single command that may run twice."""
        with connection.explained(self._redis):
            return connection.once_more(lambda: self._redis.execute_command(*args))  # type: ignore[no-untyped-call]

    def _hash(self, name: str) -> dict[str, str]:
        return {text(field): text(value) for field, value in self._command("HGETALL", name).items()}


def _unknown(job: str) -> UnknownJobError:
    return UnknownJobError(f"no job {job} is known here: `promptmill list` shows the jobs of this store")


def _carried(retry: Retry) -> dict[str, Any]:
    """The fields of a retry. What it carried over is done, and was judged in the job that generated it."""
    counts = retry.carried.model_dump(exclude={"errors"})
    base = {
        "base_completed": retry.carried.completed,
        "base_failed": retry.carried.failed,
        "base_errors": orjson.dumps(retry.carried.errors),
    }
    return {**counts, **base, "retry": retry.model_dump_json()}


def _seconds(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.timestamp():.6f}"


def _chunks(items: Iterator[_T]) -> Iterator[list[_T]]:
    while chunk := list(islice(items, CHUNK)):
        yield chunk
