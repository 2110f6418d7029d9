"""A worker that cannot serve says so in one line and exits with 2 or 3, before it takes any work."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mill import Mill
from tests.models import tiny_model
from tests.patience import wait_until
from tests.processes import Process
from tests.redis_server import Server
from tests.redis_users import refused as not_let


@dataclass(frozen=True)
class Refusals:
    """Workers that were started side by side, for each takes seconds to import what it needs."""

    nowhere: Path
    pickled: Path
    processes: dict[str, Process]

    def of(self, name: str) -> tuple[int, list[str]]:
        """The exit status of that worker, and its lines."""
        process = self.processes[name]
        return process.wait(), process.said().strip().splitlines()


@pytest.fixture(scope="module")
def refused(mill: Mill, server: Server, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    folder = tmp_path_factory.mktemp("refused")
    pickled = Path(shutil.copytree(tiny, folder / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = Path(shutil.copytree(tiny, folder / "cut"))
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").write_bytes(b"meow")
    (folder / "mount").mkdir()
    good, down = ("--model", f"x={tiny}"), "redis://:hidden-word@127.0.0.1:1/0"
    processes = {
        "nowhere": mill.start_worker("--model", f"x={folder}/nowhere"),
        "supervised": mill.start_worker("--model", f"x={folder}/nowhere", "--devices", "cpu"),
        "pickled": mill.start_worker("--model", f"x={pickled}"),
        "cut": mill.start_worker("--model", f"x={cut}"),
        "unmounted": mill.start_worker(
            *good, PROMPTMILL_STORE=str(folder / "mount"), PROMPTMILL_STORE_ID=mill.store.id
        ),
        "foreign": mill.start_worker(*good, PROMPTMILL_STORE=str(folder / "photos")),
        "bloom": mill.start_worker("--model", f"x={tiny_model('bloom', folder / 'bloom')}", "--engine", "inflight"),
        "static": mill.start_worker(*good, "--engine", "static"),
        "down": mill.start_worker(*good, PROMPTMILL_REDIS_URL=down),
        "producer": mill.start_worker(
            *good,
            PROMPTMILL_REDIS_URL=f"redis://promptmill-producer@127.0.0.1:{server.port}/0",
            PROMPTMILL_REDIS_PASSWORD_FILE=str(server.folder / "producer.password"),
        ),
    }
    return Refusals(folder / "nowhere", pickled, processes)


def test_a_folder_that_is_not_there_is_told_in_one_line(refused: Refusals) -> None:
    assert refused.of("nowhere") == (2, [f"error: there is no folder {refused.nowhere}"])


def test_processes_that_all_find_no_model_are_not_started_again(refused: Refusals) -> None:
    assert refused.of("supervised") == (2, [f"error: there is no folder {refused.nowhere}"])


def test_pickled_weights_are_refused_in_one_line(refused: Refusals) -> None:
    code, lines = refused.of("pickled")

    assert (code, len(lines)) == (2, 1)
    assert lines[0].startswith(f"error: {refused.pickled} has only pickled weights (pytorch_model.bin)")


def test_weights_that_are_cut_short_are_told_in_one_line(refused: Refusals) -> None:
    code, lines = refused.of("cut")

    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith("error: ")
    assert "model.safetensors" in lines[0] or "/cut" in lines[0]


def test_a_store_that_belongs_to_something_else_is_told_before_the_model_is_loaded(refused: Refusals) -> None:
    code, lines = refused.of("foreign")

    assert (code, len(lines)) == (3, 1)
    assert "belongs to something else" in lines[0]


def test_a_store_that_has_to_be_there_is_not_founded(refused: Refusals, mill: Mill) -> None:
    code, lines = refused.of("unmounted")

    assert (code, len(lines)) == (3, 1)
    assert f"/mount: the one with the id {mill.store.id} has to be there (PROMPTMILL_STORE_ID)" in lines[0]
    assert list((refused.nowhere.parent / "mount").iterdir()) == []


def test_a_redis_that_is_down_is_told_before_the_model_is_loaded(refused: Refusals) -> None:
    code, lines = refused.of("down")

    assert (code, len(lines)) == (3, 1)
    assert lines[0].startswith("error: Redis at 127.0.0.1:1 cannot be reached")


def test_a_login_that_may_not_take_work_is_told_before_the_model_is_loaded(refused: Refusals, server: Server) -> None:
    assert refused.of("producer") == (
        3,
        [
            f"error: Redis at 127.0.0.1:{server.port} does not let this user take work: workers log in as "
            "promptmill-worker (ops/redis/users.acl)"
        ],
    )
    assert not_let(server.client) == ["promptmill-producer: command brpop in toplevel"]


def test_a_model_that_cannot_be_served_in_flight_is_told_with_what_to_do(refused: Refusals) -> None:
    code, lines = refused.of("bloom")

    assert code == 2
    assert lines[-1] == (
        "error: BloomForCausalLM cannot be served by --engine inflight: its attention cannot be replaced; "
        "use --engine auto or padded"
    )


def test_an_engine_of_another_name_is_refused(refused: Refusals) -> None:
    code, lines = refused.of("static")

    assert code == 2
    assert all(word in "\n".join(lines) for word in ("--engine", "static", "auto", "inflight", "padded"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_worker_that_still_loads_its_model_ends_at_once(
    mill: Mill, tiny: Path, number: signal.Signals, status: int
) -> None:
    """It has nothing to hand back. The first process of a container hears no signal that it does not handle."""
    worker = mill.worker("slow", tiny, PLUGIN="tests.slow_model")
    wait_until("it to load", lambda: "loads" in worker.said())
    worker.send(number)
    assert worker.wait() == status
    assert worker.said().splitlines()[-1] == "loads"
