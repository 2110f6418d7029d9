"""Looking at jobs and steering them; live workers, the doctor, and what is not there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from jobs.records import pin
from tests.mill import Mill, Server, wait_until
from tests.redis_users import as_user

#: What scripts rely on; a job may tell more.
STATUS_FIELDS = {
    "id": str, "status": str, "model": str, "labels": dict, "priority": int, "created_at": str,
    "started_at": (str, type(None)), "ended_at": (str, type(None)), "deadline": (str, type(None)), "rows": dict,
    "batches": dict, "tokens": dict, "rate": dict, "eta_s": (int, float, type(None)), "errors": dict, "store": str,
    "results": (str, type(None)),
}  # fmt: skip


def submit(mill: Mill, name: str, count: int = 20, *flags: str, model: str = "tiny") -> str:
    arguments = ("submit", mill.prompts(name, count), "--model", model, "--max-tokens", "4", "--batch-size", "5")
    return mill.call(*arguments, *flags).ok().out.strip()


@pytest.fixture(scope="module")
def ended(mill: Mill) -> str:
    return submit(mill, "ended", 20, "--wait", "--label", "team=shop", "--priority", "-2")


# -- status, list, watch.


def test_status_json_has_the_promised_fields(mill: Mill, ended: str) -> None:
    for status in (mill.status(ended), mill.status(submit(mill, "waiting", 3, model="nobody"))):
        assert set(STATUS_FIELDS) <= set(status)
        for name, kind in STATUS_FIELDS.items():
            assert isinstance(status[name], kind), name
        assert set(status["rows"]) == {"total", "completed", "failed", "cancelled", "expired"}
        assert set(status["batches"]) == {"total", "done", "running"}
        assert set(status["tokens"]) == {"prompt", "completion"}
        assert set(status["rate"]) == {"rows_per_s", "tokens_per_s"}


def test_status_of_an_ended_job_counts_what_its_dataset_holds(mill: Mill, ended: str) -> None:
    status, table = mill.status(ended), mill.table(ended)

    assert (status["status"], status["priority"], status["labels"]) == ("completed", -2, {"team": "shop"})
    assert status["rows"] == {"total": 20, "completed": 20, "failed": 0, "cancelled": 0, "expired": 0}
    assert status["batches"] == {"total": 4, "done": 4, "running": 0}
    assert status["tokens"] == {
        "prompt": sum(table["prompt_tokens"].to_pylist()),
        "completion": sum(table["completion_tokens"].to_pylist()),
    }
    assert status["results"] == str(mill.dataset(ended))
    assert status["eta_s"] is None
    times = [datetime.fromisoformat(status[name]) for name in ("created_at", "started_at", "ended_at")]
    assert times == sorted(times)
    assert all(status[name].endswith("Z") for name in ("created_at", "started_at", "ended_at"))


def test_status_of_an_ended_job_is_read_from_the_store_when_redis_has_forgotten_it(mill: Mill, ended: str) -> None:
    before = mill.status(ended)
    with mill.ledger() as ledger:
        ledger.forget(ended)
    after = mill.status(ended)

    for name in ("status", "rows", "tokens", "batches", "errors", "results", "labels", "priority"):
        assert after[name] == before[name], name


def test_status_for_people_names_the_figures(mill: Mill, ended: str) -> None:
    out = mill.call("status", ended).ok().out

    assert "completed" in out
    assert "20 of 20 ended" in out
    assert str(mill.dataset(ended)) in out


def test_list_has_every_job_newest_first(mill: Mill, ended: str) -> None:
    newest = submit(mill, "newest", 3, model="nobody")
    listed = mill.call("list", "--json").ok().json
    ids = [status["id"] for status in listed]

    assert {name.removesuffix(".json") for name in mill.job_files()} == set(ids)
    assert ids[0] == newest
    assert next(status for status in listed if status["id"] == ended) == mill.status(ended)
    assert ended in mill.call("list").ok().out


def test_watch_ends_with_the_job_and_prints_where_its_results_are(mill: Mill) -> None:
    job = submit(mill, "watched", 60)
    done = mill.call("watch", job).ok()

    assert done.out == f"{mill.dataset(job)}\n"
    assert "60/60 rows" in done.err
    assert mill.call("watch", job, "--json").ok().json == mill.status(job)


# -- pause, resume, priority, cancel.


def test_a_paused_job_stays_and_a_resumed_one_ends(mill: Mill) -> None:
    with mill.held(batch=2):
        job = submit(mill, "paused", 200, "--max-tokens", "32")
        paused = mill.call("pause", job, "--json").ok().json
    quiet = mill.wait_for(job, "paused")
    while (running := mill.status(job))["batches"]["running"]:
        time.sleep(0.1)
    time.sleep(1.5)

    assert paused["status"] == quiet["status"] == "paused"
    assert mill.status(job)["rows"]["completed"] == running["rows"]["completed"] < 200
    assert mill.call("resume", job, "--json").ok().json["status"] == "in_progress"
    assert mill.wait_for(job, "completed")["rows"]["completed"] == 200


def test_priority_is_shown_and_out_of_range_refused(mill: Mill) -> None:
    job = submit(mill, "weighed", 3, model="nobody")

    assert mill.call("priority", job, "4", "--json").ok().json["priority"] == 4
    assert mill.call("priority", "--json", job, "--", "-5").ok().json["priority"] == -5
    assert mill.call("priority", job, "6").code == 2


def test_cancelling_a_waiting_job_gives_every_row_without_a_worker(mill: Mill) -> None:
    job = submit(mill, "never", 12, "--n", "2", model="nobody")
    mill.call("cancel", job).ok()
    status = mill.wait_for(job, "cancelled")

    assert status["rows"] == {"total": 24, "completed": 0, "failed": 0, "cancelled": 24, "expired": 0}
    assert mill.table(job)["status"].to_pylist() == ["cancelled"] * 24
    assert mill.call("watch", job).code == 1


def test_cancelling_a_running_job_keeps_finished_rows(mill: Mill) -> None:
    with mill.held(batch=2):
        job = submit(mill, "halfway", 300, "--max-tokens", "100")
        mill.wait_for_rows(job, 5)
        mill.call("cancel", job).ok()
    rows = mill.wait_for(job, "cancelled")["rows"]
    table = mill.table(job)

    assert rows["completed"] + rows["cancelled"] == rows["total"] == 300
    assert rows["completed"] >= 5
    assert rows["cancelled"] > 0
    assert table["row_index"].to_pylist() == list(range(300))
    by_status = table.group_by("status").aggregate([("text", "count")]).to_pydict()
    assert dict(zip(by_status["status"], by_status["text_count"], strict=True)) == {
        "ok": rows["completed"],
        "cancelled": 0,
    }


def test_cancelling_an_ended_job_changes_nothing(mill: Mill, ended: str) -> None:
    before = mill.status(ended)

    assert mill.call("cancel", ended, "--json").ok().json == before
    assert mill.call("pause", ended).code == 2
    assert mill.call("resume", ended).code == 2


def test_a_deadline_that_passes_ends_the_job_as_expired(mill: Mill) -> None:
    job = submit(mill, "late", 10, "--deadline", "1s", model="nobody")
    done = mill.call("watch", job)

    assert done.code == 1
    assert "ended expired" in done.err
    assert mill.status(job)["rows"]["expired"] == 10
    assert mill.table(job)["status"].to_pylist() == ["expired"] * 10


# -- workers, doctor, and what is not there.


def test_workers_lists_what_lives(mill: Mill) -> None:
    workers = mill.call("workers", "--json").ok().json

    assert {worker["model"] for worker in workers} - {"chatty"} == {"tiny"}  # some tests start another
    (worker,) = (worker for worker in workers if worker["model"] == "tiny")
    assert {"id", "device", "slots", "rows_per_s", "tokens_per_s", "in_hand"} <= set(worker)
    assert worker["pid"] == mill.processes[0].pid
    assert "tiny" in mill.call("workers").ok().out


def test_doctor_is_content_where_all_is_well(mill: Mill) -> None:
    done = mill.call("doctor").ok()

    assert "BAD" not in done.out
    assert "1 x tiny" in done.out


def test_doctor_names_what_jobs_that_stand_still_wait_for(mill: Mill) -> None:
    job = mill.call("submit", mill.prompts("unserved", 1), "--model", "unserved").ok().out.strip()
    mill.call("pause", job).ok()
    done = mill.call("doctor").ok()

    assert f"1 wait for 'unserved', which no live worker serves: {job}" in done.out
    assert "-> promptmill-worker start --model unserved=PATH_OR_ID" in done.out
    assert "-> promptmill resume JOB" in done.out
    assert mill.call("delete", job, "--yes").ok()


def test_doctor_says_that_the_disk_is_too_full_for_workers(mill: Mill) -> None:
    done = mill.call("doctor", PROMPTMILL_MIN_FREE_MB="1e9")

    assert done.code == 3
    assert "BAD  disk: " in done.out
    assert "-> make room: workers claim nothing" in done.out


def test_doctor_names_the_mend_when_redis_is_down(mill: Mill) -> None:
    done = mill.call("doctor", PROMPTMILL_REDIS_URL="redis://:hidden-word@127.0.0.1:1/0")

    assert done.code == 3
    assert "BAD  redis: Redis at 127.0.0.1:1 cannot be reached" in done.out
    assert "-> start Redis (" in done.out
    assert "set PROMPTMILL_REDIS_URL" in done.out
    assert "hidden-word" not in done.out + done.err


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "guarded", password="right-one").start()
    yield server
    server.close()


def test_doctor_does_not_show_a_wrong_password(mill: Mill, guarded: Server) -> None:
    done = mill.call("doctor", "--json", PROMPTMILL_REDIS_URL=f"redis://:wrong-one@127.0.0.1:{guarded.port}/0")

    assert done.code == 3
    assert [finding["ok"] for finding in done.json if finding["what"] == "redis"] == [False]
    assert "password" in done.out
    assert "wrong-one" not in done.out + done.err


def test_doctor_names_the_mend_of_a_redis_that_drops_keys(mill: Mill, guarded: Server) -> None:
    guarded.client.config_set("maxmemory-policy", "allkeys-lru")
    done = mill.call("doctor", PROMPTMILL_REDIS_URL=guarded.url)

    assert done.code == 3
    assert "CONFIG SET maxmemory-policy noeviction" in done.out


COMMANDS = ("status", "watch", "results", "cancel", "pause", "resume", "recover", "retry", "delete")


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


def test_a_look_into_another_store_says_which_one_is_meant(mill: Mill, idle: Mill, ended: str) -> None:
    assert idle.store.id != mill.store.id
    done = mill.call("status", ended, PROMPTMILL_STORE=str(idle.store_path))

    assert done.code == 3
    assert str(mill.store_path) in done.err


def test_the_command_without_arguments_shows_its_help_and_each_command_has_one(mill: Mill) -> None:
    commands = ("run", "check", "submit", "results", "list", "workers", "doctor", "priority", *COMMANDS)

    assert "Files of prompts in, Parquet datasets of generated text out" in mill.call("--help").ok().out
    for command in commands:
        assert "Example: promptmill " in mill.call(command, "-h").ok().out, command


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


def test_a_run_whose_job_fails_says_why_and_the_same_command_tries_again(idle: Mill, tiny: Path) -> None:
    source = idle.prompts("tried", 3)
    command = ("run", source, "--model", f"tiny={tiny}", "--max-tokens", "4", "--device", "cpu")
    # Its workers log in as it does itself.
    login = {"PROMPTMILL_REDIS_URL": as_user(idle.redis_url, "worker")}
    first = idle.start(*command, name="run", **login)
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
        stuck = mill.status(job)
        ledger.register(replace(theirs, id="w-same", fingerprint="1a2b3c4d5e6f7a8b"))
        served = mill.status(job)
        for worker in ("w-other", "w-same"):
            ledger.unregister(worker)

    assert stuck["workers"] == 0
    assert stuck["reason"] == (
        "begun with weights 1a2b3c4d; the live workers of 'nobody' have 9f8e7d6c (float32): "
        "start one with the model folder and dtype that began the job"
    )
    assert (served["workers"], served["reason"]) == (1, None)


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
