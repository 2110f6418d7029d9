"""Messages are lost, doubled, or none of ours: the ledger knows what there is to do."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_work import assert_whole, submit
from redis.client import Monitor

from jobs.permits import PERMIT_TASK, Permits, make_app, queue_key
from tests.mill import Mill
from tests.patience import wait_until

pytestmark = pytest.mark.faults


def send_too_many(mill: Mill) -> None:
    with contextlib.closing(Permits(make_app(mill.redis_url, mill.store.id), mill.store.id)) as permits:
        permits.send("tiny", 50)


def message(body: Any, *, kind: str = "application/json", task: str = PERMIT_TASK) -> bytes:
    """A message as Celery sends it, but for what the arguments say."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.dumps({
        "body": base64.b64encode(raw).decode(), "content-encoding": "utf-8", "content-type": kind,
        "headers": {"lang": "py", "task": task, "id": "1", "root_id": "1", "parent_id": None, "argsrepr": "()"},
        "properties": {"correlation_id": "1", "delivery_mode": 2, "delivery_tag": "1", "body_encoding": "base64",
                       "delivery_info": {"exchange": "", "routing_key": "permits.tiny"}, "priority": 0},
    }).encode()  # fmt: skip


EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

MESSAGES = {
    "not json": b"not json",
    "nothing": b"",
    "a number": b"17",
    "an empty object": b"{}",
    "bytes": bytes(range(256)),
    "a pickle": message(pickle.dumps(((), {}, EMBED)), kind="application/x-python-serialize"),
    "an unknown task": message([[], {}, EMBED], task="os.system"),
    "an unknown task with arguments": message([["rm -rf /"], {"shell": True}, EMBED], task="subprocess.run"),
    "arguments": message([["../../etc/passwd"], {"job": "../x", "model": "/etc", "store": "s3://theirs"}, EMBED]),
    "a body that is no call": message({"job": "x"}),
    "a body that is no json": message(b"\xff{"),
    "a permit of protocol 1": message({"task": PERMIT_TASK, "id": "1", "args": [], "kwargs": {}}),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_after_a_message_that_is_none_of_ours_the_worker_consumes_again(mill: Mill, tiny: Path, what: str) -> None:
    with mill.supervised("tiny", tiny, "--grace", "1"), mill.redis() as client:
        client.rpush(queue_key(mill.store.id, "tiny"), MESSAGES[what])
        job = submit(mill, what.replace(" ", "-"), 10, 5, tokens=4)
        assert_whole(mill, job, 10)


def delete_messages(mill: Mill) -> None:
    """The queue, and what else Celery keeps."""
    with mill.redis() as client:
        for name in client.keys(f"promptmill:{mill.store.id}:celery:*"):
            client.delete(name)


@pytest.mark.parametrize("disturb", [delete_messages, send_too_many])
def test_permits_may_vanish_or_multiply(mill: Mill, tiny: Path, disturb: Callable[[Mill], None]) -> None:
    with mill.supervised("tiny", tiny):
        job = submit(mill, f"permits-{time.time_ns()}")
        for _ in range(3):
            disturb(mill)
            time.sleep(0.3)
        assert_whole(mill, job)


def test_a_busy_worker_leaves_permits_to_those_that_have_a_free_slot(mill: Mill, tiny: Path) -> None:
    with mill.supervised("tiny", tiny):
        with mill.held(batch=0):
            job = submit(mill, "busy", 40, 5, tokens=4)
            wait_until("both slots to have a batch", lambda: mill.status(job)["batches"]["running"] == 2)
            send_too_many(mill)
            time.sleep(2)
            assert mill.queue_length("tiny") >= 50
        assert_whole(mill, job, 40)


def test_a_permit_that_is_taken_leaves_no_trace_in_redis(mill: Mill, tiny: Path) -> None:
    with mill.supervised("tiny", tiny), mill.redis() as client, client.monitor() as monitor:
        assert_whole(mill, submit(mill, "traceless", 40, 5, tokens=4), 40)
        client.echo("all has been seen")
        commands = itertools.takewhile(lambda command: "all has been seen" not in command, _commands(monitor))
        seen = [command for command in commands if ":celery:" in command]

    assert any(command.startswith("LPUSH") for command in seen)
    assert [command for command in seen if command.startswith(("ZADD", "HSET", "ZREM", "HDEL"))] == []


def _commands(monitor: Monitor) -> Iterator[str]:
    while True:
        yield monitor.next_command()["command"]


def test_a_permit_that_dies_with_the_worker_that_took_it_is_missed_by_nobody(mill: Mill, tiny: Path) -> None:
    """What is taken from its queue is gone."""
    worker = mill.workers("tiny", tiny, 1)[0]
    worker.send(signal.SIGSTOP)
    job = submit(mill, "taken", 40)  # its permit goes to the connection of the stopped worker
    worker.send(signal.SIGKILL)
    worker.wait()
    with mill.supervised("tiny", tiny):
        assert_whole(mill, job, 40)
