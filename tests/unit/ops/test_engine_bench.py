"""ops/bench/engine, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from engine_bench.contenders import CONTENDERS
from engine_bench.records import Measurement, from_line
from engine_bench.workloads import workload

SCRIPT = Path(__file__).parents[3] / "ops" / "bench" / "engine"


def _bench(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of the script."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """A run of all contenders: stdout, stderr, and the file of its findings."""
    out = tmp_path_factory.mktemp("bench") / "run.jsonl"
    size = ("--models", "tiny", "--workloads", "mixed", "shared-prefix", "--requests", "5", "--batch-sizes", "3")
    stdout, stderr = _bench(*size, "--rounds", "1", "--threads", "1", "--quick", "--out", out)
    return stdout, stderr, out


class TestTheScript:
    def test_every_contender_takes_part_or_is_said_not_to(self, ran: tuple[str, str, Path]) -> None:
        stdout, stderr, _ = ran
        output = json.loads(stdout.splitlines()[-1])
        present = [name for name, contender in CONTENDERS.items() if not contender.missing()]
        assert [*output["shared-prefix"]] == present
        assert [*output["mixed"]] == [name for name in present if CONTENDERS[name].only is None]
        for name in CONTENDERS.keys() - set(present):
            assert f"{name} took no part, not installed: " in stderr

    def test_every_contender_did_all_the_work(self, ran: tuple[str, str, Path]) -> None:
        records = [from_line(line) for line in ran[2].read_text().splitlines()]
        measured = [record for record in records if isinstance(record, Measurement)]
        tokens = {(one.work.workload, one.output_tokens) for one in measured}
        assert tokens == {(name, workload(name, 5, seed=0).output_tokens) for name in ("mixed", "shared-prefix")}
        assert all(one.seconds > 0 for one in measured)

    def test_what_was_written_can_be_reported_and_plotted_without_running(
        self, ran: tuple[str, str, Path], tmp_path: Path
    ) -> None:
        stdout, _, out = ran
        if find_spec("matplotlib") is None:
            _, stderr = _bench("--report", out, "--plot", tmp_path / "bench.svg", code=2)
            assert "pip install 'promptmill[bench]'" in stderr
            return
        plots = [tmp_path / "one.svg", tmp_path / "two.svg"]
        for plot in plots:
            again, stderr = _bench("--report", out, "--plot", plot)
            assert again == stdout.splitlines()[-1] + "\n"
            assert "of floor" in stderr
        assert ElementTree.parse(plots[0]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert plots[0].read_bytes() == plots[1].read_bytes()

    def test_a_report_of_nothing_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jsonl").touch()
        _, stderr = _bench("--report", tmp_path / "empty.jsonl", code=2)
        assert stderr == "engine: nothing was measured\n"

    def test_a_file_of_something_else_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "other.jsonl").write_text("{}\n")
        _, stderr = _bench("--report", tmp_path / "other.jsonl", code=2)
        assert "other.jsonl:1 is no line of this benchmark" in stderr
        assert "Traceback" not in stderr
