"""What the units in ops/systemd promise, as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[3] / "ops" / "systemd"
WORKER, EXPORTER = "promptmill-worker@.service", "promptmill-exporter.service"

#: The unit's own figure of what it could do to the machine, from 0 to 10.
MOST_EXPOSURE = {WORKER: 2.0, EXPORTER: 1.5}

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units in a folder of their own, with programs that exist."""
    for name in (WORKER, EXPORTER):
        text = (UNITS / name).read_text()
        program = next(
            word for line in text.splitlines() if line.startswith("ExecStart=") for word in line[10:].split()
        )
        (tmp_path / name.replace("@", "@copy")).write_text(text.replace(program, "/bin/true"))
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    done = analyze("verify", "--man=no", *map(str, sorted(units.glob("*.service"))))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", [WORKER, EXPORTER])
def test_a_unit_can_do_little_to_its_machine(units: Path, name: str) -> None:
    done = analyze("security", "--offline=yes", "--no-pager", str(units / name.replace("@", "@copy")))
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd cannot tell: {done.stderr.strip()}")
    assert float(found[1]) <= MOST_EXPOSURE[name], done.stdout


@pytest.mark.parametrize("name", [WORKER, EXPORTER])
def test_a_password_comes_as_a_credential_and_a_mistake_is_not_repeated(name: str) -> None:
    lines = (UNITS / name).read_text().splitlines()
    assert any(line.startswith("LoadCredential=redis_password:") for line in lines)
    assert "Environment=PROMPTMILL_REDIS_PASSWORD_FILE=%d/redis_password" in lines
    assert "Restart=always" in lines
    assert "RestartPreventExitStatus=2" in lines


@pytest.mark.parametrize(
    ("unit", "example"), [(WORKER, "worker-copy.env.example"), (EXPORTER, "promptmill.env.example")]
)
def test_an_example_logs_in_as_the_user_whose_password_the_unit_loads(unit: str, example: str) -> None:
    loaded = re.search(r"^LoadCredential=\S+/redis_(\w+)$", (UNITS / unit).read_text(), re.MULTILINE)
    named = re.search(r"^PROMPTMILL_REDIS_URL=redis://promptmill-(\w+)@", (UNITS / example).read_text(), re.MULTILINE)
    assert loaded
    assert named
    assert loaded[1] == named[1]


def test_systemd_waits_longer_than_a_supervisor_does() -> None:
    text = (UNITS / WORKER).read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)s$", text, re.MULTILINE)
    assert stop
    assert int(stop[1]) > 30 + 20, "--grace, and the time after which the supervisor kills"


def test_the_example_names_what_the_unit_reads() -> None:
    read = set(re.findall(r"\$\{?(WORKER_\w+)", (UNITS / WORKER).read_text()))
    given = set(re.findall(r"^(WORKER_\w+)=", (UNITS / "worker-copy.env.example").read_text(), re.MULTILINE))
    assert read == given
