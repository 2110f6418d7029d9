"""Jobs that are not there, that failed, or that nobody can go on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from acceptance_work import COMMANDS, submit

from jobs.records import pin
from producer.status import _of_state
from tests.mill import Mill
from tests.patience import wait_until
from tests.redis_users import as_user


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_job_exits_2(mill: Mill, command: str) -> None:
    done = mill.call(command, "job-that-never-was")

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: no job 'job-that-never-was'")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_id_that_cannot_be_one_exits_2(mill: Mill, command: str) -> None:
    assert mill.call(command, "../jobs/x").code == 2


def test_a_store_that_is_not_there_exits_3(mill: Mill) -> None:
    done = mill.call("list", "--store", str(mill.folder / "elsewhere"))

    assert (done.code, done.out) == (3, "")
    assert "no Promptmill store at" in done.err
    assert not (mill.folder / "elsewhere").exists(), "looking founds no store"


def test_a_look_into_another_store_says_which_one_is_meant(mill: Mill, idle: Mill) -> None:
    job = submit(mill, "elsewhere", 3, model="nobody")
    assert idle.store.id != mill.store.id
    done = mill.call("status", job, PROMPTMILL_STORE=str(idle.store_path))

    assert done.code == 3
    assert str(mill.store_path) in done.err


def test_a_failed_job_says_why_and_recover_has_it_go_on(mill: Mill) -> None:
    job = submit(mill, "failing", 3, model="nobody")
    with mill.ledger() as ledger:
        ledger.fail(job, "the disk was full")
    status, watched, asked = mill.status(job), mill.call("watch", job), mill.call("results", job)

    assert (status["status"], status["reason"], status["results"]) == ("failed", "the disk was full", None)
    assert (watched.code, watched.out) == (1, "")
    assert f"failed: the disk was full; once that is mended, `promptmill recover {job}` goes on" in watched.err
    assert asked.code != 0
    assert "or has failed" in asked.err
    assert mill.call("recover", "--json").ok().json["restored"].count(job) == 0
    assert mill.call("recover", job, "--json").ok().json == {"restored": [job], "damaged": []}
    assert mill.status(job)["status"] == "in_progress"


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"status": "completed", "rows": 3}', None])
def test_a_job_whose_manifest_is_damaged_exits_3(idle: Mill, content: bytes | None) -> None:
    job = submit(idle, "damaged", 3, "--again", model="nobody")
    idle.call("cancel", job).ok()
    manifest = idle.dataset(job) / "_manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_bytes(content)
    with idle.ledger() as ledger:
        ledger.forget(job)
    done, listed = idle.call("status", job), idle.call("list")

    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
    assert str(manifest) in done.err
    assert (listed.code, job in listed.out, "Traceback" in listed.err) == (0, False, False)


def test_a_run_whose_job_fails_says_why_and_the_same_command_tries_again(idle: Mill, tiny: Path) -> None:
    source = idle.prompts("tried", 3)
    command = ("run", source, "--model", f"tiny={tiny}", "--max-tokens", "4", "--device", "cpu")
    # Its workers log in as it does itself.
    login = {"PROMPTMILL_REDIS_URL": as_user(idle.redis_url, "worker")}
    # To its worker the disk is too full, so that nothing is done before the job has failed.
    first = idle.start(*command, name="run", PROMPTMILL_MIN_FREE_MB="1e9", **login)
    job = wait_until("the job", lambda: [name.removesuffix(".json") for name in idle.job_files()])[0]
    with idle.ledger() as ledger:
        wait_until("the ledger to know it", lambda: ledger.job(job))
        ledger.fail(job, "the disk was full")
    code, again = first.wait(), idle.call(*command, **login)

    assert (code, "Traceback" in first.said()) == (1, False)
    assert f"job {job} failed: the disk was full" in first.said()
    assert again.ok().out.endswith(f"{idle.dataset(job)}\n")
    assert idle.status(job)["rows"]["completed"] == 3


def test_a_job_begun_with_weights_that_nobody_has_says_so(mill: Mill) -> None:
    job = submit(mill, "pinned", 3, model="nobody")
    pin(mill.store, job, "1a2b3c4d5e6f7a8b")
    with mill.ledger() as ledger:
        ledger.forget(job)
        mill.call("recover", job).ok()
        theirs = replace(ledger.workers()[0], id="w-other", model="nobody", fingerprint="9f8e7d6c5b4a3f2e")
        ledger.register(theirs)
        stuck, doctor = mill.status(job), mill.call("doctor").ok().out
        ledger.register(replace(theirs, id="w-same", fingerprint="1a2b3c4d5e6f7a8b"))
        served = mill.status(job)
        for worker in ("w-other", "w-same"):
            ledger.unregister(worker)

    assert stuck["workers"] == 0
    why = "begun with weights 1a2b3c4d; the live workers of 'nobody' have 9f8e7d6c (float32)"
    mend = (
        "start one with the model folder and dtype that began the job, or go on with these by "
        f"`promptmill cancel {job}` and `promptmill retry {job} --cancelled`"
    )
    assert stuck["reason"] == f"{why}: {mend}"
    assert f"ok   jobs: 1 wait: {job}: {why}\n     -> {mend}\n" in doctor
    assert (served["workers"], served["reason"]) == (1, None)


def test_no_time_to_go_is_told_of_a_job_that_nobody_works_on_any_more(mill: Mill) -> None:
    job = submit(mill, "slowing", 3, model="nobody")
    with mill.connection() as connection:
        state, [worker, *_] = connection.ledger.job(job), connection.ledger.workers()
        assert state is not None
        state = replace(state, rows_per_s=2.0)
        left, served = (_of_state(connection, state, there) for there in ([], [replace(worker, model="nobody")]))

    assert (left.eta_s, served.eta_s) == (None, 1.5)


def test_recover_brings_back_a_job_that_redis_has_lost(mill: Mill) -> None:
    job = submit(mill, "lost", 3, model="nobody")
    with mill.ledger() as ledger:
        ledger.forget(job)
    recovered = mill.call("recover", job, "--json").ok().json

    assert recovered == {"restored": [job], "damaged": []}
    with mill.ledger() as ledger:
        state = ledger.job(job)
    assert state is not None
    assert state.batches == 1
