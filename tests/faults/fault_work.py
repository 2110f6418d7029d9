"""A job whose rows can be checked one by one: what most of these tests disturb."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.ledger import keys
from ops.faults.checker import Expected, check_job
from tests.mill import Mill
from tests.patience import PATIENCE_S, wait_until

#: Enough for seconds of work.
TOKENS = 32


def submit(mill: Mill, name: str, rows: int = 300, batch: int = 20, tokens: int = TOKENS, model: str = "tiny") -> str:
    """A job of ``rows`` numbered rows under the id ``name``."""
    flags = ("--model", model, "--max-tokens", str(tokens), "--batch-size", str(batch), "--job-id", name)
    return mill.call("submit", mill.prompts(name, rows), *flags).ok().out.strip()


def leases(mill: Mill, job: str) -> list[str]:
    """The owner of each lease of ``job``; the process is part of its name."""
    with mill.redis() as client:
        held: list[str] = client.hvals(keys.key(mill.store.id, "job_leases", job))
    return [lease.split("|", 4)[4] for lease in held]


def assert_whole(
    mill: Mill, job: str, rows: int = 300, timeout_s: float = PATIENCE_S, errors: Mapping[int, str] | None = None
) -> None:
    """The job completes, each row once, in order, generated but for those with ``errors``."""
    wait_until(f"the dataset of {job}", (mill.dataset(job) / "_SUCCESS").exists, timeout_s)
    assert check_job(mill.store_path, Expected(job, rows, errors=errors or {})) == []
