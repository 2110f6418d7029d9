"""What an operator sees of a worker and an exporter while things break around them."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_work import submit

from tests.mill import Mill
from tests.patience import wait_until
from tests.ports import free_port
from tests.processes import Command, Process
from tests.redis_server import Server
from tests.web import get

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "ops" / "monitoring"


def samples(port: int) -> dict[str, float]:
    """A scrape: value by series as it is written."""
    status, text = get(port, "/metrics")
    assert status == 200, "it does not answer"
    lines = text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def labels_served(*ports: int) -> dict[str, set[str]]:
    """The labels of each metric, by name."""
    found: dict[str, set[str]] = {}
    for port in ports:
        for series in samples(port):
            name, _, labels = series.partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def said_json(process: Process) -> list[dict[str, Any]]:
    """Its log; fails where a line is no JSON object."""
    lines = [json.loads(line) for line in process.said().splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


@pytest.fixture
def own_mill(tmp_path: Path, own_server: Server) -> Iterator[Mill]:
    mill = Mill(tmp_path, own_server.url)
    yield mill
    mill.close()


def started_exporter(mill: Mill, *flags: str, **env: str) -> tuple[Command, int]:
    port = free_port()
    exporter = mill.start("exporter", "--port", str(port), "--host", "127.0.0.1", *flags, name="exporter", **env)
    wait_until("the exporter to serve", lambda: get(port, "/healthz")[0] == 200)
    return exporter, port


def ready(port: int) -> bool:
    return get(port, "/readyz")[0] == 200


def test_a_worker_and_an_exporter_are_seen_through_a_job_and_the_loss_of_redis(
    own_mill: Mill, own_server: Server, tiny: Path
) -> None:
    mill, port = own_mill, free_port()
    as_json = {"PROMPTMILL_LOG_FORMAT": "json", "PROMPTMILL_LOG_LEVEL": "debug"}
    worker = mill.worker("tiny", tiny, "--metrics-port", str(port), **as_json)
    exporter, exported = started_exporter(mill, "--model", "tiny", "--model", "never", **as_json)
    mill.wait_for_workers([worker])
    with mill.held(batch=2):
        job = submit(mill, "seen", rows=80, batch=8)
        mill.wait_for_rows(job, 16)

        # Both know each other, and no model is without its series.
        wait_until("the worker's registration", lambda: ready(port) and ready(exported))
        wait_until("the backlog to be seen", lambda: samples(exported)['promptmill_backlog_batches{model="tiny"}'] > 0)
        seen = samples(exported)
        assert seen['promptmill_workers{model="tiny"}'] == 1
        assert seen['promptmill_backlog_batches{model="never"}'] == seen['promptmill_workers{model="never"}'] == 0
        assert_expressions_are_served(labels_served(port, exported))

        own_server.kill()
        wait_until("the exporter to see it", lambda: not ready(exported))
        wait_until("the worker to see it", lambda: "heartbeats wait" in worker.said())
        last = samples(exported)
        assert (last['promptmill_up{part="redis"}'], last['promptmill_up{part="store"}']) == (0, 1)
        assert last['promptmill_workers{model="tiny"}'] == 1, "what was known last is still served"
        assert get(exported, "/healthz")[0] == get(port, "/healthz")[0] == get(port, "/readyz")[0] == 200

    own_server.start()
    mill.wait_for(job, "completed")
    wait_until("the exporter to see it", lambda: ready(exported))
    wait_until("the end", lambda: samples(exported)['promptmill_backlog_batches{model="tiny"}'] == 0)
    assert samples(exported)['promptmill_recoveries_total{reason="redis_reconnected"}'] == 1
    # The exporter may have ended the job while the worker's last batch was on its way to the figures.
    wait_until("all batches to be counted", lambda: samples(port)["promptmill_batch_seconds_count"] >= 10)
    done = samples(port)
    assert done['promptmill_rows_total{model="tiny",status="ok"}'] == 80
    assert done["promptmill_batch_seconds_count"] == 10
    reconnected = 'promptmill_recoveries_total{reason="redis_reconnected"}'
    wait_until("the worker's next heartbeat", lambda: samples(port)[reconnected] >= 1)

    for process in (worker, exporter):
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    for line in said_json(worker):
        assert line["worker"].count("-") >= 2
    # The exporter ends the job where the worker has not yet registered again with the Redis that is back.
    said = said_json(worker) + said_json(exporter)
    assert [line["job"] for line in said if line["message"].startswith(f"job {job} ended")] == [job]
    told = [line["message"] for line in said_json(exporter) if line["message"].startswith("redis:")]
    assert len(told) == 2, "an outage is told once, and its end"
    assert told[1] == "redis: works again"


def test_an_exporter_waits_for_redis_and_then_ends_the_jobs_that_no_worker_would(
    own_mill: Mill, own_server: Server
) -> None:
    mill = own_mill
    mill.call("submit", mill.prompts("lone", 4), "--model", "nobody", "--job-id", "lone").ok()
    own_server.kill()
    exporter, port = started_exporter(mill)
    code, why = get(port, "/readyz")
    wait_until("Redis to be asked", lambda: samples(port).get('promptmill_up{part="redis"}') == 0)
    assert (code, why.partition(":")[0]) == (503, "redis")
    assert 'promptmill_backlog_batches{model="nobody"}' not in samples(port), "nothing is claimed of what is not known"

    own_server.start()
    wait_until("the backlog", lambda: samples(port).get('promptmill_backlog_batches{model="nobody"}') == 1)
    assert samples(port)['promptmill_job_rows{job_id="lone",model="nobody",status="waiting"}'] == 4
    with mill.ledger() as ledger:
        ledger.cancel("lone")
    wait_until("the dataset", (mill.dataset("lone") / "_SUCCESS").exists)
    wait_until("the end", lambda: samples(port).get('promptmill_jobs{model="nobody",status="cancelled"}') == 1)
    left = samples(port)
    assert left['promptmill_backlog_batches{model="nobody"}'] == 0, "a model without jobs is not forgotten"
    assert not [name for name in left if 'job_id="lone"' in name]

    taken = mill.run("exporter", "--port", str(port), "--host", "127.0.0.1")
    assert (taken.code, taken.err.startswith(f"error: --port {port} cannot be used")) == (2, True)
    exporter.send(signal.SIGTERM)
    assert exporter.wait() == 0


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"PROMPTMILL_STORE": "ftp://there"}, 2),
        ({"PROMPTMILL_REDIS_URL": "here"}, 2),
        ({"PROMPTMILL_STORE": "mount", "PROMPTMILL_STORE_ID": "0" * 16}, 3),
    ],
)
def test_an_exporter_that_can_never_work_ends_with_one_sentence(
    own_mill: Mill, wrong: dict[str, str], status: int
) -> None:
    done = own_mill.run("exporter", "--port", str(free_port()), **wrong)
    assert done.code == status
    assert [line for line in done.err.splitlines() if "INFO" not in line] == [done.err.splitlines()[-1]]
    assert done.err.splitlines()[-1].startswith("error: ")


def assert_expressions_are_served(served: dict[str, set[str]]) -> None:
    """Every metric that a rule or a panel asks for is one that is served, and has the labels that it is asked by."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    board = json.loads((MONITORING / "grafana" / "dashboards" / "promptmill.json").read_text(encoding="utf-8"))
    asked = [rule["expr"] for group in rules for rule in group["rules"]]
    asked += [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    # Only a job that paused itself has it.
    served = {**served, "promptmill_job_paused_itself": {"job_id", "model"}}
    assert len(asked) > 50
    for expression in asked:
        for name, labels in re.findall(r"(?<![:\w])(promptmill_\w+)(?:\{([^}]*)\})?", expression):
            assert name in served, f"{name} of {expression} is not served: {sorted(served)}"
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", labels)) <= served[name], expression
