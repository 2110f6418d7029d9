"""``promptmill doctor``: what is wrong with the store and Redis, and how to mend it."""

from __future__ import annotations

import platform
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from jobs import __version__
from jobs.errors import PromptmillError, WrongStoreError
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.spec import Status
from jobs.store import Store
from producer.status import standstill

#: Seconds that two clocks may be apart.
_MAX_CLOCK_S = 30.0

#: The first versions whose scripts may declare that they run when memory is full.
_MIN_REDIS = (7, 0)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; ``mend`` says what to do where it is wrong, or could be better."""

    what: str
    found: str
    ok: bool = True
    mend: str | None = None


def examine(settings: Settings) -> list[Finding]:
    """Look at everything a producer needs; changes nothing but a probe file that is removed again."""
    findings = [_versions()]
    store: Store | None = None
    try:
        store = Store.open(settings.store, wanted=settings.store_id)
        store.probe()
        findings.append(Finding("store", f"{store.uri} (id {store.id}), put-if-absent holds"))
        findings.append(Finding("store id", store.id))  # by itself, for PROMPTMILL_STORE_ID
        findings += _disk(store, settings)
    except WrongStoreError as error:
        findings.append(Finding("store", str(error), False))
    except PromptmillError as error:
        mend = "set PROMPTMILL_STORE; the first submit or run creates a store in an empty place"
        findings.append(Finding("store", str(error), False, mend))
    try:
        ledger = Ledger.connect(settings.redis, store.id if store else "none")
        findings += _redis(ledger.ping())
        findings.append(_clock(ledger.now() - time.time()))
        if store is not None:
            findings.append(_workers(ledger))
            findings += _jobs(ledger)
        ledger.close()
    except PromptmillError as error:
        mend = (
            "start Redis (`docker compose up -d redis`, or the package redis-server), or set PROMPTMILL_REDIS_URL to "
            "one that runs; `promptmill run` brings its own"
        )
        findings.append(Finding("redis", str(error), False, mend))
    return findings


def _versions() -> Finding:
    found = [f"promptmill {__version__}", f"python {platform.python_version()}"]
    for package in ("celery", "redis", "pyarrow", "obstore", "torch", "transformers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return Finding("versions", ", ".join(found))


def _redis(server: dict[str, object]) -> list[Finding]:
    numbers = tuple(int(part) for part in str(server["version"]).split(".")[:2])
    name = f"{server['server']} {server['version']}"
    findings = [
        Finding("redis", name, numbers >= _MIN_REDIS, None if numbers >= _MIN_REDIS else "upgrade to Redis 7 or Valkey")
    ]
    policy = str(server["maxmemory_policy"])
    findings.append(
        Finding(
            "redis memory",
            f"{int(str(server['used_memory'])) / 1e6:,.1f} MB used, policy {policy}",
            policy == "noeviction",
            None if policy == "noeviction" else "CONFIG SET maxmemory-policy noeviction: other policies drop jobs",
        )
    )
    durable = bool(server["appendonly"])
    mend = None if durable else "appendonly yes keeps pauses and priorities over a restart (jobs come back anyway)"
    findings.append(Finding("redis durability", f"append-only file {'on' if durable else 'off'}", True, mend))
    return findings


def _disk(store: Store, settings: Settings) -> list[Finding]:
    """How full the disk of a local store is."""
    free = store.free_bytes()
    if free is None:
        return []
    enough = free >= settings.min_free_mb * 2**20
    mend = (
        f"make room: workers claim nothing while less than {settings.min_free_mb:g} MiB are free "
        "(PROMPTMILL_MIN_FREE_MB); `promptmill delete JOB` removes a job's files"
    )
    return [Finding("disk", f"{free / 1e9:,.1f} GB free", enough, None if enough else mend)]


def _clock(ahead_s: float) -> Finding:
    """Deadlines and leases go by the clock of Redis, deadlines like 6h are counted from this machine's."""
    same = abs(ahead_s) < _MAX_CLOCK_S
    where = "ahead of" if ahead_s > 0 else "behind"
    found = "that of Redis is the same" if same else f"that of Redis is {abs(ahead_s):,.0f} s {where} this machine's"
    return Finding("clock", found, same, None if same else "set both by NTP: deadlines would fire early or late")


def _jobs(ledger: Ledger) -> list[Finding]:
    """Jobs that stand still, and what gets them going."""
    workers = ledger.workers()
    served = {worker.model for worker in workers}
    live = [job for job in ledger.jobs() if not job.status.ended]
    findings = []
    for model in sorted({job.model for job in live} - served):
        waiting = [job.id for job in live if job.model == model]
        shown = f"{len(waiting)} wait for {model!r}, which no live worker serves: {_first(waiting)}"
        findings.append(Finding("jobs", shown, True, f"promptmill-worker start --model {model}=PATH_OR_ID"))
    still: dict[str, list[str]] = {}
    mends: dict[str, str] = {}
    for job in live:
        if found := standstill(job, workers):
            why, mends[found[0]] = found
            still.setdefault(why, []).append(job.id)
    for why, jobs in still.items():
        findings.append(Finding("jobs", f"{len(jobs)} wait: {_first(jobs)}: {why}", True, mends[why]))
    paused = [job.id for job in live if job.status is Status.PAUSED]
    if paused:
        findings.append(Finding("jobs", f"{len(paused)} paused: {_first(paused)}", True, "promptmill resume JOB"))
    return findings


def _first(jobs: list[str]) -> str:
    return ", ".join(jobs[:3]) + (f" and {len(jobs) - 3} more" if len(jobs) > 3 else "")


def _workers(ledger: Ledger) -> Finding:
    """How many of each model; of which release, where that is not this one."""
    live = Counter((worker.model, worker.version) for worker in ledger.workers())
    if not live:
        return Finding("workers", "none live", True, "promptmill-worker start --model NAME=PATH_OR_ID")
    mixed = any(release != __version__ for _, release in live)
    shown = ", ".join(
        f"{count} x {model}" + (f" of promptmill {release}" if mixed else "")
        for (model, release), count in sorted(live.items())
    )
    mend = f"this is promptmill {__version__}: upgrade workers first, then producers" if mixed else None
    return Finding("workers", shown, True, mend)
