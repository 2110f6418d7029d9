"""A store, its ledger, and permits on the same server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jobs.ledger import Ledger
from jobs.permits import Permits, make_app
from jobs.store import Store
from tests.job_work import memory_store


@pytest.fixture
def store() -> Store:
    return memory_store()


@pytest.fixture
def ledger(redis_server: Any, store: Store) -> Iterator[Ledger]:
    redis_server.client.flushall()
    ledger = Ledger.connect(redis_server.url, store.id, sweep_s=60.0)
    ledger.recovered()
    yield ledger
    ledger.close()


@pytest.fixture
def permits(redis_server: Any, ledger: Ledger) -> Iterator[Permits]:
    permits = Permits(make_app(redis_server.url, ledger.store_id), ledger.store_id)
    yield permits
    permits.close()
