"""What can happen to a campaign. Each fault answers whether it did: there may be nothing to strike."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.permits import queue_key

if TYPE_CHECKING:
    from ops.faults.campaign import Campaign


def _kill(campaign: Campaign) -> bool:
    if (worker := campaign.victim()) is None:
        return False
    campaign.orphans[worker.pid] = time.monotonic()
    campaign.struck.add(worker.pid)
    worker.send(signal.SIGKILL)
    return True


def _terminate(campaign: Campaign) -> bool:
    if (worker := campaign.victim()) is None:
        return False
    worker.send(signal.SIGTERM)
    return True


def _stop_past_lease(campaign: Campaign) -> bool:
    if (worker := campaign.victim()) is None:
        return False
    worker.send(signal.SIGSTOP)
    campaign.later.append((time.monotonic() + 2 * campaign.lease_s, lambda: worker.send(signal.SIGCONT)))
    return True


def _restart_redis(campaign: Campaign) -> bool:
    campaign.server.kill()
    time.sleep(campaign.rng.uniform(0.0, 2.0))
    campaign.server.start()
    return True


def _flush(campaign: Campaign) -> bool:
    campaign.server.client.flushall()
    return True


def _drop_messages(campaign: Campaign) -> bool:
    names = campaign.server.client.keys(f"promptmill:{campaign.store.id}:celery:*")
    return bool(names) and bool(campaign.server.client.delete(*names))


def _too_many_permits(campaign: Campaign) -> bool:
    campaign.permits.send(campaign.alias, 50)
    return True


def _garbage(campaign: Campaign) -> bool:
    content = campaign.rng.choice(["not json", "{}", '{"body": 1}', os.urandom(20)])
    return bool(campaign.server.client.rpush(queue_key(campaign.store.id, campaign.alias), content))


def _spoil_connections(campaign: Campaign) -> bool:
    proxy = campaign.proxy
    mode = campaign.rng.choice(["reset", "silent", "slow", "cut", "refuse"])
    if mode == "reset":
        proxy.reset()
        return True
    proxy.use(mode)  # type: ignore[arg-type]

    def mend() -> None:
        # What was swallowed is missing: such a connection is of no use any more.
        proxy.use("pass")
        proxy.reset()

    campaign.later.append((time.monotonic() + campaign.rng.uniform(0.5, 3.0), mend))
    return True


def _pause(campaign: Campaign) -> bool:
    if (job := campaign.live_job()) is None or campaign.mill.call("pause", job).code:
        return False
    campaign.later.append((time.monotonic() + 2.0, lambda: _resume(campaign, job)))
    return True


def _resume(campaign: Campaign, job: str) -> None:
    campaign.mill.call("resume", job)


def _cancel(campaign: Campaign) -> bool:
    job = campaign.live_job("cancelled")
    return job is not None and campaign.mill.call("cancel", job).code == 0


def _retry(campaign: Campaign) -> bool:
    return campaign.orders.retry_one()


def _delete(campaign: Campaign) -> bool:
    return campaign.orders.delete_one()


def _damage_a_part(campaign: Campaign) -> bool:
    parts = list(campaign.mill.store_path.glob("data/*/parts/part-*.parquet"))
    if not parts:
        return False
    path = campaign.rng.choice(parts)
    content = bytearray(path.read_bytes())
    campaign.damaged.add(path.name)
    if campaign.rng.random() < 0.5:
        content[campaign.rng.randrange(len(content))] ^= 1 << campaign.rng.randrange(8)
    else:
        del content[campaign.rng.randrange(len(content)) :]
    path.write_bytes(content)
    return True


#: What can happen, how often beside the others, and how; None: it happens where jobs and workers are made.
FAULTS: dict[str, tuple[int, Callable[[Campaign], bool] | None]] = {
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
