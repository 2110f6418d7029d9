"""A producer, Redis, S3 and three workers, each on a host with an address of its own, and cables that are pulled.

Hosts are network namespaces; see tests/machines.py.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import sleep

import pytest

from jobs.ledger import JobState, Ledger
from jobs.spec import Status
from ops.faults import plugin
from ops.faults.checker import Expected, Work, check_job
from tests.machines import Machines
from tests.mill import Mill
from tests.patience import wait_until
from tests.processes import Command, Worker
from tests.redis_server import Server
from tests.s3_server import variables

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's"),
]

ROOT = Path(__file__).parents[2]
#: Seconds: the lease, the sweep, and how long a worker that cannot be heard stays listed (30 in the product).
LEASE_S, SWEEP_S, LISTED_S = 6.0, 0.5, 4
ROWS, BATCH, TOKENS = 200, 10, 32
MAX_ROWS = 4
#: Rows that a worker has in hand at most: a batch is claimed where fewer than twice MAX_ROWS are, and another waits.
MOST_IN_HAND = 2 * MAX_ROWS + 2 * BATCH
HOSTS = ("redis", "s3", "producer", "worker1", "worker2", "worker3")
WORKERS = HOSTS[3:]
#: Seconds, for whatever is in hand, on any machine.
LONG_GRACE = "100"

#: How the producer's host reads a dataset back: file by file, into a folder of this machine.
_COPY = """
import sys
from pathlib import Path
from jobs.store import Store
uri, prefix, folder = sys.argv[1:]
store = Store.open(uri)
for item in store.list(prefix):
    path = Path(folder, item.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(store.get(item.path))
"""


@dataclass
class Site:
    """The hosts and what runs on them. This process is on none of them: it looks at Redis through a socket file."""

    machines: Machines
    mill: Mill
    server: Server
    model: Path
    logs: Path
    #: By host.
    workers: dict[str, Worker] = field(default_factory=dict)
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        if self._ledger is None:
            [store] = {key.split(":")[1] for key in self.server.client.keys("promptmill:*:epoch")}
            self._ledger = Ledger.connect(self.server.console, store)
        return self._ledger

    def state(self, job: str) -> JobState:
        state = self.ledger.job(job)
        assert state is not None
        return state

    # -- On the workers' hosts.

    def start(self, host: str, *flags: str) -> None:
        self.flags[host] = flags
        env = {"PLUGIN": plugin.__name__, "FAULTS_LOG": str(self.logs), "FAULTS_LISTED": str(LISTED_S)}
        env |= {"PROMPTMILL_LEASE_S": str(LEASE_S), "PROMPTMILL_SWEEP_S": str(SWEEP_S)}
        # Few rows at once: a job of a few hundred is to take seconds.
        flags = ("--max-rows", str(MAX_ROWS), *flags)
        self.workers[host] = self.mill.worker("tiny", self.model, *flags, host=self.machines[host], **env)

    def restart(self, host: str, *flags: str, drains: Callable[[], None] = lambda: None) -> None:
        """As a rolling restart does: the old one ends by itself, then a new one starts and is waited for.

        ``drains`` is called once the old one claims nothing any more.
        """
        old = self.workers[host]
        old.send(signal.SIGTERM)
        wait_until(f"{host} to drain", lambda: "draining: " in old.said())
        drains()
        assert old.wait() == 0
        self.start(host, *flags)
        self.wait_ready(host)

    def wait_ready(self, host: str) -> None:
        pid = self.workers[host].pid
        wait_until(f"{host} to register", lambda: pid in {worker.pid for worker in self.ledger.workers()})

    def all_alive(self) -> bool:
        return all(worker.alive for worker in self.workers.values())

    def events(self, worker: Worker, kind: str) -> list[list[str]]:
        """What the worker has noted of this kind; see ops/faults/plugin.py."""
        log = self.logs / f"{worker.pid}.log"
        lines = (line.split()[1:] for line in (log.read_text().splitlines() if log.exists() else ()))
        return [words for found, *words in lines if found == kind]

    def in_hand(self, job: str, host: str, worker: Worker | None = None) -> set[str]:
        """The batches of ``job`` that the worker there has begun and not committed."""
        worker, stage = worker or self.workers[host], self.state(job).stage
        begun, committed = (
            {words[1] for words in self.events(worker, kind) if words[0] == stage} for kind in ("begin", "commit")
        )
        return begun - committed

    def wait_in_hand(self, job: str, *hosts: str) -> bool:
        """Until each of the workers there has a batch of ``job`` in hand; False if the job ends before."""

        def look() -> str:
            over = self.state(job).status.ended
            return "in hand" if all(self.in_hand(job, host) for host in hosts) else "over" if over else ""

        return wait_until(f"{', '.join(hosts)} to begin batches of {job}", look, every_s=0.01) == "in hand"

    # -- On the producer's host.

    def promptmill(self, *arguments: str) -> str:
        return self.mill.run(*arguments, host=self.machines["producer"]).ok().out

    def submit(self, name: str, rows: int = ROWS, tokens: int = TOKENS) -> str:
        flags = ("--model", "tiny", "--max-tokens", str(tokens), "--batch-size", str(BATCH), "--job-id", name)
        return self.promptmill("submit", self.mill.prompts(name, rows), *flags).strip()

    def submit_to(self, name: str, *hosts: str, rows: int = ROWS) -> str:
        """A job of which each of the workers there has a batch in hand. One that was cut off may need a few."""
        for number in range(30):
            job = self.submit(f"{name}-{number}", rows)
            if self.wait_in_hand(job, *hosts):
                return job
        raise AssertionError(f"{', '.join(hosts)} take no work")

    def listed(self) -> set[str]:
        """The hosts that ``promptmill workers`` shows."""
        return {worker["host"] for worker in json.loads(self.promptmill("workers", "--json"))}

    def wait_ended(self, job: str) -> None:
        wait_until(f"{job} to end", lambda: self.state(job).status is Status.COMPLETED)

    def assert_whole(self, job: str, rows: int = ROWS) -> None:
        """Each row is there once, in order, as DuckDB reads what the producer's host got from S3."""
        self.wait_ended(job)
        copy = self.mill.folder / "copies"
        arguments = [sys.executable, "-c", _COPY, self.mill.store_uri or "", f"results/job_id={job}", str(copy)]
        log = self.mill.folder / f"{job}.log"
        reader = Command(arguments, self.mill.environment, log, self.machines["producer"])
        assert reader.wait() == 0, reader.said()
        reader.close()
        assert check_job(copy, Expected(job, rows)) == []

    # -- The work that was done.

    def twice(self, job: str, *workers: Worker) -> int:
        """Rows of ``job`` that were generated more than once; each of them at most once but for ``workers``.

        What one of these hands back the next of them may take, and hand back too.
        """
        stage, pids = self.state(job).stage, {worker.pid for worker in workers}
        again = [doers for row, doers in Work.of(self.logs).doers.items() if len(doers) > 1 and row[0] == stage]
        assert [
            doers for doers in again if len(doers) > len(pids) + 1 or sum(pid not in pids for pid in doers) > 1
        ] == []
        return len(again)


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    pytest.importorskip("pyroute2")
    try:
        machines = Machines(HOSTS)
    except OSError as error:
        pytest.skip(f"this machine lets this user make no network namespaces: {error}")
    yield machines
    machines.close()


@pytest.fixture(scope="module")
def site(machines: Machines, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    server = Server(folder / "redis", host=machines["redis"])
    address = machines["s3"].address
    serve = [sys.executable, "-m", "tests.s3_server", address, "9000", "mill"]
    s3 = Command(serve, {}, folder / "s3.log", machines["s3"], cwd=ROOT)
    mill = Mill(folder, server.url, "s3://mill/store")
    mill.processes.append(s3)
    (folder / "logs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables(f"http://{address}:9000").items():
            patch.setenv(name, value)
        try:
            server.start()
            wait_until("S3 to answer", lambda: "ready" in s3.said())
            site = Site(machines, mill, server, tiny, folder / "logs")
            for host in WORKERS:
                site.start(host, "--grace", LONG_GRACE)
            wait_until("a store", lambda: server.client.keys("promptmill:*:epoch"))
            for host in WORKERS:
                site.wait_ready(host)
            yield site
        finally:
            mill.close()
            server.close()


def test_a_host_whose_cable_is_pulled_in_mid_job_costs_nothing_and_works_again_when_it_is_back(site: Site) -> None:
    cut = site.workers["worker1"]
    with ExitStack() as cable:
        with site.mill.held(batch=0):
            job = site.submit_to("pulled", "worker1")
            cable.enter_context(site.machines.unplugged("worker1"))
            in_hand = site.in_hand(job, "worker1")
        site.wait_ended(job)
        wait_until("the host to be listed no more", lambda: site.listed() == {"worker2", "worker3"})
    wait_until("the host to be listed again", lambda: site.listed() == set(WORKERS))
    site.assert_whole(job)
    assert in_hand, "nothing was cut off"
    assert site.twice(job, cut) <= MOST_IN_HAND
    assert any("expired, the batch goes back" in site.workers[host].said() for host in ("worker2", "worker3"))

    site.wait_ended(site.submit_to("plugged", "worker1"))
    assert cut.alive


def test_one_worker_without_redis_and_one_without_s3_cost_nothing(site: Site) -> None:
    job = site.submit_to("torn", "worker2", "worker3")
    with site.machines.severed("worker2", "redis"), site.machines.severed("worker3", "s3"):
        sleep(LEASE_S + 1)
    site.assert_whole(job)
    # What the one without S3 generates waits for it, and so does its lease.
    assert site.twice(job, site.workers["worker2"]) <= MOST_IN_HAND
    assert site.all_alive()


def test_requests_that_arrive_and_replies_that_get_lost_cost_nothing(site: Site) -> None:
    job = site.submit_to("unheard", "worker1")
    with site.machines.losing("redis", "worker1"), site.machines.losing("s3", "worker2"):
        sleep(LEASE_S + 1)
    site.assert_whole(job)
    assert site.twice(job, site.workers["worker1"]) <= MOST_IN_HAND
    assert site.all_alive()


def test_redis_can_be_away_from_all_hosts_for_longer_than_a_lease(site: Site) -> None:
    job = site.submit_to("away", *WORKERS)
    with site.machines.unplugged("redis"):
        sleep(LEASE_S + 1)
    site.assert_whole(job)
    assert site.twice(job, *site.workers.values()) <= len(WORKERS) * MOST_IN_HAND
    assert site.all_alive()


def test_a_link_of_a_few_kb_a_second_is_waited_for(site: Site) -> None:
    try:
        with site.machines.slowed("worker1", 8_000):
            job = site.submit("slow", 60)
            site.assert_whole(job, 60)
    except OSError as error:
        pytest.skip(f"this kernel cannot slow down a link: {error}")
    assert site.all_alive()


@pytest.mark.parametrize("grace", [LONG_GRACE, "0"])
def test_all_workers_are_restarted_one_after_the_other_in_mid_job(site: Site, grace: str) -> None:
    for host in WORKERS:
        if site.flags[host] != ("--grace", grace):
            site.restart(host, "--grace", grace)
    old, in_hand, batches = list(site.workers.values()), set[str](), 3 * ROWS // BATCH
    # Before each restart the workers have what they hold in hand, and more than they could hold is left.
    gates = [batches * part // (len(WORKERS) + 1) for part in range(1, len(WORKERS) + 1)]
    with site.mill.held(gates[0]) as go_on_to:
        job = site.submit_to(f"rolling-{grace}", *WORKERS, rows=3 * ROWS)
        for host, next_gate in zip(WORKERS, [*gates[1:], batches], strict=True):
            assert site.wait_in_hand(job, host), "the job was over before all workers were restarted"
            before = site.workers[host]
            site.restart(host, "--grace", "0", drains=partial(go_on_to, next_gate))
            in_hand |= site.in_hand(job, host, before)
    site.assert_whole(job, 3 * ROWS)
    if grace == "0":
        assert site.twice(job, *old) <= BATCH * len(in_hand)
    else:
        assert (site.twice(job), in_hand) == (0, set()), "the grace period was long enough for all that was in hand"
