"""What each transition costs the server and its caller, one call at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jobs.ledger import Beat, Claim, Ledger, keys
from ledger_bench.server import Server
from ledger_bench.work import PART, STORE_ID, accept_jobs, empty_ledger, worker

#: Calls of each transition that a worker makes once in 5 s rather than for each batch.
SELDOM = 20


def costs(server: Server, jobs: int, calls: int) -> list[dict[str, Any]]:
    """The processor time of each call with so many live jobs, in microseconds."""
    ledger, me = empty_ledger(server), worker()
    accept_jobs(ledger, jobs, calls)
    held: list[Claim] = []

    def claim() -> None:
        claimed = ledger.claim(me)
        assert claimed is not None
        held.append(claimed)

    def finish() -> None:
        one = held.pop()
        ledger.finish(one.job, one.batch, one.token, PART)

    def heartbeat() -> None:
        ledger.heartbeat([Beat(one.job, one.batch, one.token, 100, 5_000) for one in held[-4:]], me.id)

    claim()
    finish()
    found = [_measure(server, "claim", claim, calls)]
    found += [_measure(server, "heartbeat of 4", heartbeat, calls // 4), _measure(server, "finish", finish, calls)]
    found += [_measure(server, name, call, SELDOM) for name, call in _upkeep(server, ledger).items()]
    ledger.close()
    return [{"jobs": jobs, **one} for one in found]


def _upkeep(server: Server, ledger: Ledger) -> dict[str, Callable[[], object]]:
    me = worker()

    def sweep_stalled() -> None:
        server.client.hdel(keys.key(STORE_ID, "vtime", me.model), "claimed")
        ledger.sweep(me.id)

    return {
        "register": lambda: ledger.register(me),
        "has_work": lambda: ledger.has_work(me),
        "sweep": lambda: ledger.sweep(me.id),
        "sweep, stalled": sweep_stalled,
        "all claimable": lambda: ledger.claimable(me.model),
    }


def _measure(server: Server, name: str, call: Callable[[], object], calls: int) -> dict[str, Any]:
    cpu, scripts, own = server.cpu(), server.script_seconds(), time.process_time()
    for _ in range(calls):
        call()
    own, scripts, cpu = time.process_time() - own, server.script_seconds() - scripts, server.cpu() - cpu
    each = {"server_us": cpu, "script_us": scripts, "client_us": own}
    return {"call": name, "calls": calls} | {key: round(1e6 * spent / calls, 1) for key, spent in each.items()}
