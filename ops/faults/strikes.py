"""What can happen to a site. Each fault answers whether it did: there may be nothing to strike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from jobs.permits import queue_key
from ops.faults.site import Site


def _kill(site: Site) -> bool:
    if (worker := site.victim()) is None:
        return False
    site.orphans[worker.pid] = time.monotonic()
    site.struck.add(worker.pid)
    worker.send(signal.SIGKILL)
    return True


def _terminate(site: Site) -> bool:
    if (worker := site.victim()) is None:
        return False
    worker.send(signal.SIGTERM)
    return True


def _stop_past_lease(site: Site) -> bool:
    if (worker := site.victim()) is None:
        return False
    worker.send(signal.SIGSTOP)
    site.later.append((time.monotonic() + 2 * site.lease_s, lambda: worker.send(signal.SIGCONT)))
    return True


def _restart_redis(site: Site) -> bool:
    site.server.kill()
    time.sleep(site.rng.uniform(0.0, 2.0))
    site.server.start()
    return True


def _flush(site: Site) -> bool:
    site.server.client.flushall()
    return True


def _drop_messages(site: Site) -> bool:
    names = site.server.client.keys(f"promptmill:{site.store.id}:celery:*")
    return bool(names) and bool(site.server.client.delete(*names))


def _too_many_permits(site: Site) -> bool:
    site.permits.send(site.alias, 50)
    return True


def _garbage(site: Site) -> bool:
    content = site.rng.choice(["not json", "{}", '{"body": 1}', os.urandom(20)])
    return bool(site.server.client.rpush(queue_key(site.store.id, site.alias), content))


def _spoil_connections(site: Site) -> bool:
    proxy = site.proxy
    mode = site.rng.choice(["reset", "silent", "slow", "cut", "refuse"])
    if mode == "reset":
        proxy.reset()
        return True
    proxy.use(mode)  # type: ignore[arg-type]

    def mend() -> None:
        # What was swallowed is missing: such a connection is of no use any more.
        proxy.use("pass")
        proxy.reset()

    site.later.append((time.monotonic() + site.rng.uniform(0.5, 3.0), mend))
    return True


def _pause(site: Site) -> bool:
    if (job := site.live_job()) is None or site.mill.call("pause", job).code:
        return False
    site.later.append((time.monotonic() + 2.0, lambda: _resume(site, job)))
    return True


def _resume(site: Site, job: str) -> None:
    site.mill.call("resume", job)


def _cancel(site: Site) -> bool:
    job = site.live_job("cancelled")
    return job is not None and site.mill.call("cancel", job).code == 0


def _retry(site: Site) -> bool:
    return site.orders.retry_one()


def _delete(site: Site) -> bool:
    return site.orders.delete_one()


def _damage_a_part(site: Site) -> bool:
    parts = site.mill.parts()
    if not parts:
        return False
    path = site.rng.choice(parts)
    content = bytearray(path.read_bytes())
    site.damaged.add(path.name)
    if site.rng.random() < 0.5:
        content[site.rng.randrange(len(content))] ^= 1 << site.rng.randrange(8)
    else:
        del content[site.rng.randrange(len(content)) :]
    path.write_bytes(content)
    return True


#: What can happen, how often beside the others, and how; None: it happens where jobs and workers are made.
FAULTS: dict[str, tuple[int, Callable[[Site], bool] | None]] = {
    "kill": (8, _kill),
    "terminate": (1, _terminate),
    "stop past lease": (1, _stop_past_lease),
    "restart redis": (1, _restart_redis),
    "flush redis": (1, _flush),
    "drop messages": (1, _drop_messages),
    "too many permits": (1, _too_many_permits),
    "garbage": (1, _garbage),
    "spoil connections": (2, _spoil_connections),
    "pause": (1, _pause),
    "cancel": (2, _cancel),
    "retry": (2, _retry),
    "delete": (1, _delete),
    "damage a part": (1, _damage_a_part),
    "kill point": (0, None),
    "curse": (0, None),
    "deadline": (0, None),
    "submit again": (0, None),
}
