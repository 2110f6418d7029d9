"""``promptmill doctor``: what is wrong with the store and Redis, and how to mend it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from jobs import __version__
from jobs.errors import PromptmillError
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.store import Store

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
        store = Store.open(settings.store)
        store.probe()
        findings.append(Finding("store", f"{store.uri} (id {store.id}), put-if-absent holds"))
    except PromptmillError as error:
        mend = "set PROMPTMILL_STORE; the first submit or run creates a store in an empty place"
        findings.append(Finding("store", str(error), False, mend))
    try:
        ledger = Ledger.connect(settings.redis, store.id if store else "none")
        findings += _redis(ledger.ping())
        if store is not None:
            findings.append(_workers(ledger))
        ledger.close()
    except PromptmillError as error:
        mend = "start Redis, or set PROMPTMILL_REDIS_URL to one that runs"
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


def _workers(ledger: Ledger) -> Finding:
    models: dict[str, int] = {}
    for worker in ledger.workers():
        models[worker.model] = models.get(worker.model, 0) + 1
    if not models:
        return Finding("workers", "none live", True, "promptmill-worker start --model NAME=PATH_OR_ID")
    return Finding("workers", ", ".join(f"{count} x {model}" for model, count in sorted(models.items())))
