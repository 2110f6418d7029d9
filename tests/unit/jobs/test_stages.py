"""What killed processes leave behind is removed, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from jobs import layout
from jobs.job_file import JobFile
from jobs.spec import JobSpec, now
from jobs.stages import ABANDONED_AFTER, clean_up, remove_abandoned, remove_ended_parts
from jobs.store import Store

LATER = ABANDONED_AFTER + timedelta(minutes=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with the input of two stages, of which one is a job's."""
    store = Store.open(str(tmp_path / "store"), create=True)
    for stage in ("accepted", "killed"):
        store.put_if_absent(layout.input_batch(stage, 0), b"rows")
    job = JobFile(id="j", stage="accepted", created_at=now(), spec=JobSpec(model="m"), digest="0" * 64, rows=1,
                  result_rows=1, batches=1, max_tokens_total=1)  # fmt: skip
    store.put_if_absent(layout.job_file("j"), job.to_bytes())
    return store


def test_a_stage_that_no_job_names_is_removed_when_it_is_old(store: Store) -> None:
    assert remove_abandoned(store, now() + LATER) == ["killed"]
    assert not store.exists(layout.input_batch("killed", 0))
    assert store.exists(layout.input_batch("accepted", 0))


def test_a_stage_is_left_alone_for_a_week_because_its_submit_may_be_going_on(store: Store) -> None:
    assert remove_abandoned(store, now() + ABANDONED_AFTER - timedelta(minutes=1)) == []
    assert store.exists(layout.input_batch("killed", 0))


def test_nothing_is_removed_while_a_job_record_cannot_be_read(store: Store) -> None:
    store.put_if_absent(layout.job_file("damaged"), b"{")
    assert remove_abandoned(store, now() + LATER) == []
    assert store.exists(layout.input_batch("killed", 0))


def test_the_parts_of_an_ended_job_are_removed_and_those_of_a_live_one_stay(store: Store) -> None:
    part = layout.part("accepted", 0)
    store.put_if_absent(part, b"rows")
    assert remove_ended_parts(store) == []
    assert store.exists(part)
    store.put_if_absent(layout.success_file("j"), b"")
    assert remove_ended_parts(store) == ["j"]
    assert not store.exists(part)


def test_a_file_that_a_killed_process_was_writing_is_removed_after_a_day(store: Store) -> None:
    assert store.root is not None
    half = store.root / (layout.part("accepted", 0) + "#1")
    half.parent.mkdir()
    half.write_bytes(b"ro")
    clean_up(store, now())
    assert half.exists()
    clean_up(store, now() + timedelta(days=1, minutes=1))
    assert not half.exists()
    assert store.exists(layout.input_batch("accepted", 0))


def test_what_links_lead_to_is_nobodys_to_remove(store: Store, tmp_path: Path) -> None:
    assert store.root is not None
    theirs = tmp_path / "theirs" / "input"
    theirs.mkdir(parents=True)
    (theirs / "batch-00000.parquet").write_bytes(b"precious")
    (store.root / "data" / "linked").symlink_to(theirs.parent, target_is_directory=True)
    (store.root / "data" / "killed" / "input" / "batch-00001.parquet").symlink_to(theirs / "batch-00000.parquet")
    (store.root / "jobs" / "evil.json").symlink_to(theirs / "batch-00000.parquet")
    assert remove_abandoned(store, now() + LATER) == ["killed"]
    assert (theirs / "batch-00000.parquet").read_bytes() == b"precious"


def test_a_top_folder_may_lie_on_another_disk(store: Store, tmp_path: Path) -> None:
    assert store.root is not None
    (store.root / "data").rename(tmp_path / "elsewhere")
    (store.root / "data").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert remove_abandoned(store, now() + LATER) == ["killed"]
    assert store.exists(layout.input_batch("accepted", 0))
