"""What a job takes in the server's memory, from its start to its summary."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.ledger import Claim, Ledger, keys
from jobs.results import PartCounts
from jobs.spec import Status
from ledger_bench.server import Server
from ledger_bench.work import BATCH_ROWS, PART, STORE_ID, empty_ledger, job_file, worker

_THREADS = 4
#: Batches in hand while half of a job is done: a thousand workers with four slots.
_FLEET = 4_000


def memory(server: Server, rows: int) -> list[dict[str, Any]]:
    """Bytes of all keys at each stage of a job's life, and by how much the server's memory has grown.

    At ``start`` nothing is claimed. ``half way`` a fleet has 4,000 batches in hand. Then ``all leased``: every batch
    that is not done, at once, which no fleet does; ``all returned``: those leases have expired, and every batch
    carries what is remembered of it. ``done`` waits for its finalizer, ``ended`` is the summary.
    """
    batches = -(-rows // BATCH_ROWS)
    ledger, job = empty_ledger(server), job_file(0, batches)
    before, found = server.used_memory(), []

    def note(stage: str) -> None:
        grown = server.used_memory() - before
        found.append({"stage": stage, "keys_bytes": _bytes_of_keys(server), "used_bytes": grown})

    ledger.accept(job)
    note("start")
    held = _claim(ledger, batches // 2 + min(_FLEET, batches // 4))
    _finish(ledger, [held.pop(0) for _ in range(batches // 2)])
    note("half way")
    held += _claim(ledger, batches - batches // 2 - len(held))
    note("all leased")
    _let_leases_expire(server, ledger)
    note("all returned")
    _finish(ledger, held)
    note("done")
    ledger.finalized(job.id, Status.COMPLETED, PartCounts(completed=rows), None)
    note("ended")
    ledger.close()
    return found


def _claim(ledger: Ledger, count: int) -> list[Claim]:
    def claim(number: int) -> Claim:
        found = ledger.claim(worker(number % 1_000))
        assert found is not None
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(claim, range(count)))


def _finish(ledger: Ledger, claims: list[Claim]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda claim: ledger.finish(claim.job, claim.batch, claim.token, PART), claims))


def _let_leases_expire(server: Server, ledger: Ledger) -> None:
    leases = keys.key(STORE_ID, "leases")
    server.client.zunionstore(leases, {leases: 0.0})
    while (sweep := ledger.sweep("bench")) is None or sweep.returned:
        pass


def _bytes_of_keys(server: Server) -> int:
    """Of every key of the store, read whole rather than estimated from samples."""
    names = server.client.scan_iter(keys.prefix(STORE_ID) + "*", count=1_000)
    return sum(int(server.client.memory_usage(name, samples=0)) for name in names)
