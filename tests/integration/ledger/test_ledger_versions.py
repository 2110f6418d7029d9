"""Programs of several releases on one Redis: each claims the jobs that it reads, and none works in another's layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest

from jobs.errors import LayoutError
from jobs.ledger import Ledger, connection, keys
from tests.integration.ledger.ledger_work import W1, finish, job_file, let_leases_expire, run, state, worker

LATER = replace(worker("later"), reads=(2, 3))


@pytest.fixture
def later(ledger: Ledger, redis_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The same ledger as a program sees it that reads jobs of version 3 too."""
    with monkeypatch.context() as then:
        then.setattr(keys, "JOB_VERSIONS", (2, 3))
        then.setattr(connection, "_SOURCES", connection._load())
        found = Ledger.connect(redis_server.url, ledger.store_id)
    yield found
    found.close()


def accept(ledger: Ledger, job: str, version: int, batches: int = 2, created: float = 0.0) -> None:
    ledger.accept(job_file(job, batches, created=created).model_copy(update={"version": version}))


def test_jobs_are_claimed_by_those_who_read_them(ledger: Ledger, later: Ledger) -> None:
    accept(later, "new", 3)
    assert (ledger.has_work(W1), later.has_work(LATER)) == (False, True)
    assert ledger.claim(W1) is None
    accept(ledger, "old", 2, created=1)
    assert run(ledger) == [("old", 0), ("old", 1), ("old", -1)]
    assert run(later, LATER) == [("new", 0), ("new", 1), ("new", -1)]


def test_a_worker_that_reads_both_shares_itself_fairly(ledger: Ledger, later: Ledger) -> None:
    accept(ledger, "old", 2)
    accept(later, "new", 3, created=1)
    accept(ledger, "old-too", 2, created=2)
    done = [job for job, batch in run(later, LATER) if batch >= 0]
    assert done == ["old", "new", "old-too", "old", "new", "old-too"]


def test_a_batch_that_comes_back_is_left_to_those_who_read_it_too(ledger: Ledger, later: Ledger, redis_server) -> None:
    accept(later, "new", 3, batches=1)
    assert later.claim(LATER) is not None
    let_leases_expire(redis_server.client, ledger)
    swept = ledger.sweep("old")
    assert swept is not None
    assert swept.returned == [("new", 0)]
    assert ledger.claim(W1) is None
    assert run(later, LATER) == [("new", 0), ("new", -1)]


def test_nobody_else_ends_a_job(ledger: Ledger, later: Ledger) -> None:
    accept(later, "new", 3, batches=1)
    claim = later.claim(LATER)
    assert claim is not None
    assert finish(ledger, claim), "whoever has its part in the store may say so"
    assert ledger.claim_finalize() is None
    assert ledger.claim_finalize("new") is None
    assert ledger.claim(W1) is None
    assert state(ledger, "new").version == 3
    assert later.claim_finalize("new") is not None
    later.forget("new")


def test_a_cancelled_job_leaves_nothing(ledger: Ledger, later: Ledger) -> None:
    accept(later, "new", 3)
    ledger.cancel("new")
    assert run(later, LATER) == [("new", -1)]


@contextmanager
def later_layout() -> Iterator[None]:
    """Within, this process is one of a release that keeps its state in another layout."""
    with patch.object(keys, "LAYOUT", 2):
        yield


class TestLayout:
    def test_workers_of_an_earlier_one_find_out_that_later_ones_have_taken_over(
        self, ledger: Ledger, redis_server
    ) -> None:
        with later_layout():
            later = Ledger.connect(redis_server.url, ledger.store_id, leads=True)
            assert later.needs_recover(), "it begins empty"
            later.close()
        said = r"holds the state of this store's jobs as a later release keeps it: upgrade promptmill here$"
        with pytest.raises(LayoutError, match=said):
            ledger.needs_recover()
        with pytest.raises(LayoutError, match=said):
            Ledger.connect(redis_server.url, ledger.store_id, leads=True)

    def test_neither_sees_the_jobs_of_the_other(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file("old", 1))
        with later_layout():
            later = Ledger.connect(redis_server.url, ledger.store_id, leads=True)
            later.accept(job_file("new", 1))
            assert run(later) == [("new", 0), ("new", -1)]
            later.close()
        assert run(ledger) == [("old", 0), ("old", -1)]

    def test_producers_follow_the_workers(self, ledger: Ledger, redis_server) -> None:
        with later_layout():
            with pytest.raises(LayoutError, match=r"as an earlier release keeps it: upgrade the workers first$"):
                Ledger.connect(redis_server.url, ledger.store_id)
            Ledger.connect(redis_server.url, ledger.store_id, leads=True).close()
            Ledger.connect(redis_server.url, ledger.store_id).close()

    def test_an_empty_server_is_anybodys(self, ledger: Ledger, redis_server) -> None:
        redis_server.client.flushall()
        with later_layout():
            Ledger.connect(redis_server.url, ledger.store_id).recovered()
        assert redis_server.client.get(keys.layout(ledger.store_id)) == "2"
        redis_server.client.flushall()
