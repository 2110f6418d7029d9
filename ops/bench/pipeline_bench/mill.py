"""The whole pipeline: a server, a store, a worker process, and the command that submits a job."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from bench_errors import BenchError

from jobs import layout
from jobs.ledger import JobState
from jobs.settings import Settings
from jobs.store import Store
from pipeline_bench.records import ALIAS, PipelineRun, Prompts, Setup, environment
from producer.connection import Connection
from producer.server import EmbeddedServer, free_port

#: Seconds to wait for a worker to load its model, and for it to end.
_LOAD_S, _STOP_S = 300.0, 30.0
#: Seconds between two looks at the job: its times are the ledger's, and looking takes time from the worker.
_LOOK_S = 0.5
#: Of the worker's metrics. The last is there on Linux only.
_STEPS, _STEP_SECONDS = "promptmill_step_seconds_count", "promptmill_step_seconds_sum"
_CPU_SECONDS = "process_cpu_seconds_total"


@contextmanager
def serving(setup: Setup, concurrency: int, folder: Path) -> Iterator[Mill]:
    """A server, a store and a worker of their own in ``folder``, the model loaded. Raises BenchError."""
    store, log = folder / "store", folder / "worker.log"
    folder.mkdir()
    # Founded before the server leaves its address in it.
    Store.open(str(store), create=True)
    with EmbeddedServer(store, folder / "server") as server:
        own = {"PROMPTMILL_STORE": str(store), "PROMPTMILL_REDIS_URL": server.url}
        connection = Connection(Settings.load(store=str(store), redis_url=server.url))
        port, variables = free_port(), environment(setup, **own)
        command = worker_command(setup, concurrency, port)
        with log.open("wb") as output:
            worker = subprocess.Popen(command, stdout=output, stderr=output, env=variables, start_new_session=True)
        mill = Mill(connection, worker, log, variables, f"http://127.0.0.1:{port}/metrics")
        try:
            mill.wait_for_worker()
            yield mill
        finally:
            connection.close()
            stop(worker)


def worker_command(setup: Setup, concurrency: int, metrics_port: int) -> list[str]:
    options = {
        "model": f"{ALIAS}={setup.model}",
        "engine": setup.engine,
        "threads": setup.threads,
        "max-rows": setup.max_rows,
        "max-batch-tokens": setup.max_batch_tokens,
        "concurrency": concurrency,
        "metrics-port": metrics_port,
        # Should the benchmark be killed, its worker ends.
        "parent": os.getpid(),
    }
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    return [sys.executable, "-m", "worker", "start", *chain.from_iterable(given)]


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


@dataclass
class Mill:
    """A store, its ledger, and a worker process."""

    connection: Connection
    worker: subprocess.Popen[bytes]
    log: Path
    #: Of its commands.
    environment: dict[str, str]
    metrics_url: str
    #: What the worker chose.
    engine: str = ""

    def wait_for_worker(self) -> None:
        """Raises BenchError where it does not load its model."""
        deadline = time.monotonic() + _LOAD_S
        while time.monotonic() < deadline:
            self._check_worker()
            if workers := self.connection.ledger.workers():
                self.engine = workers[0].engine
                return
            time.sleep(_LOOK_S)
        raise BenchError(f"no worker after {_LOAD_S:g} s")

    def run(self, prompts: Prompts) -> PipelineRun:
        """``prompts`` as a job, from the start of the command that submits it. Raises BenchError."""
        before = self._metrics()
        started, name = time.time(), prompts.path.stem
        self._submit(prompts, name)
        state = self._end_of(name)
        if state.started_at is None or state.ended_at is None:
            raise BenchError(f"the ledger does not know when job {name} began and ended")
        after = self._metrics()
        rows = self._results(state.id, prompts)
        first_token, last_token = (times.timestamp() for times in (min(rows["started_at"]), max(rows["finished_at"])))
        # The finalizer puts its plan when it has seen all parts.
        committed = (Path(self.connection.settings.store) / layout.plan_file(state.stage)).stat().st_mtime
        return PipelineRun(
            engine=self.engine,
            seconds=state.ended_at - started,
            prompt_tokens=sum(rows["prompt_tokens"]),
            completion_tokens=sum(rows["completion_tokens"]),
            steps=round(after[_STEPS] - before[_STEPS]),
            step_seconds=after[_STEP_SECONDS] - before[_STEP_SECONDS],
            cpu_seconds=after[_CPU_SECONDS] - before[_CPU_SECONDS],
            submit=state.created_at - started,
            claim=state.started_at - state.created_at,
            generate=last_token - state.started_at,
            commit=committed - last_token,
            finalize=state.ended_at - committed,
            first_token=first_token - state.started_at,
        )

    def _submit(self, prompts: Prompts, job: str) -> None:
        command = [sys.executable, "-c", "from producer.cli import main; main()", "submit", str(prompts.path)]
        command += ["--model", ALIAS, "--job-id", job]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"submit ended with status {done.returncode}: {done.stderr.strip()}")

    def _end_of(self, job: str) -> JobState:
        while True:
            self._check_worker()
            state = self.connection.ledger.job(job)
            if state is None or state.reason:
                raise BenchError(f"job {job} does not go on: {state.reason if state else 'the ledger has lost it'}")
            if state.status.ended:
                return state
            time.sleep(_LOOK_S)

    def _results(self, job: str, prompts: Prompts) -> dict[str, list[Any]]:
        """Columns of the dataset. Raises BenchError where it does not hold what was asked for."""
        folder = Path(self.connection.settings.store) / layout.results_prefix(job)
        table = pa.concat_tables(pq.read_table(file, partitioning=None) for file in sorted(folder.glob("*.parquet")))
        rows: dict[str, list[Any]] = table.to_pydict()
        if rows["row_index"] != [*range(len(prompts.output_tokens))]:
            raise BenchError(f"{table.num_rows} rows in the dataset where {len(prompts.output_tokens)} were asked for")
        wrong = [i for i, tokens in enumerate(prompts.output_tokens) if rows["completion_tokens"][i] != tokens]
        wrong += [i for i, status in enumerate(rows["status"]) if status != "ok"]
        if wrong:
            raise BenchError(f"{len(wrong)} rows are not as asked for; row {wrong[0]}: {table.slice(wrong[0], 1)}")
        return rows

    def _metrics(self) -> dict[str, float]:
        """What the worker counted since its start, by name."""
        with urllib.request.urlopen(self.metrics_url) as answer:
            lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {_CPU_SECONDS: math.nan} | {name: float(value) for name, value in lines}

    def _check_worker(self) -> None:
        if self.worker.poll() is not None:
            last = self.log.read_text(errors="replace").strip().splitlines()[-5:]
            raise BenchError(f"the worker ended with status {self.worker.returncode}: " + " / ".join(last))
