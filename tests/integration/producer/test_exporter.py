"""An exporter while other programs take over, and while another store takes the place of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from jobs.errors import WrongStoreError
from jobs.ledger import Ledger, keys
from jobs.settings import Settings
from jobs.store import Store
from producer.exporter.service import Exporter
from tests.integration.producer.test_observer import accept
from tests.patience import PATIENCE_S, wait_until


@pytest.fixture
def place(redis_server: Any, tmp_path: Path) -> Iterator[tuple[Path, Exporter]]:
    """The folder of a store, and an exporter that looks at it."""
    redis_server.client.flushall()
    settings = Settings(store=str(tmp_path / "store"), redis_url=redis_server.producer_url, sweep_s=0.1)
    Store.open(settings.store, create=True)
    exporter = Exporter(settings)
    exporter.start()
    wait_until("the exporter to be ready", lambda: exporter.ready() is None)
    yield tmp_path / "store", exporter
    exporter.stop()


def test_figures_that_nobody_keeps_up_any_more_are_not_passed_off_as_new(
    place: tuple[Path, Exporter], redis_server: Any
) -> None:
    folder, exporter = place
    with patch.object(keys, "LAYOUT", 2):
        redis_server.client.set(keys.layout(Store.open(str(folder)).id), 3)
    wait_until("the exporter to see it", lambda: "as a later release keeps it" in (exporter.ready() or ""))
    assert not exporter.known.up()["redis"]


def test_a_store_that_takes_the_place_of_another_is_looked_at_in_its_stead(
    place: tuple[Path, Exporter], redis_server: Any, tmp_path: Path
) -> None:
    folder, exporter = place
    folder.rename(tmp_path / "away")
    wait_until("the exporter to miss it", lambda: "is gone" in (exporter.ready() or ""))
    other = Store.open(str(folder), create=True)
    ledger = Ledger.connect(redis_server.url, other.id)
    accept(ledger, "one", "other")
    ledger.close()

    def seen() -> bool:
        return exporter.known.ledger is not None and "other" in exporter.known.ledger.models

    wait_until("the exporter to look at the other", lambda: seen() and exporter.ready() is None)


# That SystemExit ends a thread is no news but to pytest.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_store_that_takes_the_place_of_the_one_that_has_to_be_there_ends_it(
    redis_server: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    wanted = Store.open(str(folder), create=True).id
    exporter = Exporter(Settings(store=str(folder), store_id=wanted, redis_url=redis_server.producer_url, sweep_s=0.1))
    exporter.start()
    wait_until("the exporter to be ready", lambda: exporter.ready() is None)
    folder.rename(tmp_path / "away")
    wait_until("the exporter to miss it", lambda: "is gone" in (exporter.ready() or ""))
    assert exporter.ending.empty()  # it may be mounted again
    other = Store.open(str(tmp_path / "other"), create=True).id
    (tmp_path / "other").rename(folder)
    with pytest.raises(WrongStoreError, match=f"{wanted} has to be there .*another one is, {other}"):
        raise exporter.ending.get(timeout=PATIENCE_S) or AssertionError
    exporter.stop()


def test_an_exporter_of_a_store_without_jobs_says_which_others_there_are(
    place: tuple[Path, Exporter], redis_server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder may be mistyped."""
    caplog.set_level(logging.WARNING)
    settings = Settings(store=str(tmp_path / "stroe"), redis_url=redis_server.producer_url, sweep_s=0.1)
    exporter = Exporter(settings)
    exporter.start()
    wait_until("the exporter to be ready", lambda: exporter.ready() is None)
    exporter.stop()
    assert f"the store {settings.store} has no jobs; this Redis also serves {place[0]}" in caplog.messages
