"""Input batches on their way to the store."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import layout
from jobs.errors import InputError
from jobs.store import Store
from producer.batches import StagedBatch
from producer.stage_writer import StageWriter


def batch(index: int, size: int = 10) -> StagedBatch:
    return StagedBatch(index, index, pa.table({"row_index": [index], "prompt": ["x" * size]}))


def write(store: Store, count: int, then: type[BaseException] | None = None) -> None:
    with StageWriter(store, "s") as writer:
        for index in range(count):
            writer.put(batch(index))
        if then is not None:
            raise then


@pytest.fixture(params=["disk", "remote"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    """One that is written on the spot, and one that several threads write to."""
    return Store.open(str(tmp_path / "store") if request.param == "disk" else "memory://", create=True)


def test_all_batches_are_there_when_it_is_left(store: Store) -> None:
    with StageWriter(store, "s") as writer:
        for index in range(40):
            writer.put(batch(index, size=4 << 20 if index % 10 == 0 else 10))
    assert {item.path for item in store.list("data")} == {layout.input_batch("s", index) for index in range(40)}


def test_what_is_wrong_with_one_is_raised_at_the_latest_when_it_is_left(store: Store) -> None:
    store.put_if_absent(layout.input_batch("s", 2), b"another's")
    with pytest.raises(InputError, match="in use by another submit"):
        write(store, 3)


def test_after_an_error_nothing_is_on_its_way_any_more(store: Store) -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        write(store, 5, then=KeyboardInterrupt)
    # Those of earlier tests may end meanwhile.
    assert set(threading.enumerate()) <= before


def test_nothing_to_write_is_nothing_to_wait_for(store: Store) -> None:
    write(store, 0)
    assert list(store.list("data")) == []
