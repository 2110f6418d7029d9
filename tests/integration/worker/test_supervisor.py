"""The supervisor of a machine's processes, with real ones that cost nothing: see tests/supervised.py."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import supervised
from tests.patience import PATIENCE_S, wait_until
from tests.processes import Command
from worker.supervisor.lines import labelled_json
from worker.supervisor.plan import ChildPlan, Plan

ROOT = Path(__file__).parents[3]
ONE, TWO = "cpu:0", "cpu:1"
#: Seconds until a process that does not end is killed, where a test waits for that: those beside it end before.
SOON_S = 4.0


@dataclass
class Place:
    """A folder that says what each process does, and the supervisors that were started there."""

    folder: Path
    started: list[Command] = field(default_factory=list)

    def says(self, **does: str) -> None:
        """From its next start on, ``one`` or ``two`` does that."""
        for name, words in does.items():
            (self.folder / {"one": ONE, "two": TWO}[name]).write_text(words)

    def supervise(self, *before: str, log_format: str = "text", kill_s: float = 60.0, **env: str) -> Command:
        """A supervisor of both, which kills what has not ended ``kill_s`` after it was told to."""
        log = self.folder / f"supervisor-{len(self.started)}.log"
        command = [*before, *self.command(log_format, kill_s)]
        self.started.append(Command(command, self.environment | env, log))
        return self.started[-1]

    def command(self, log_format: str = "text", kill_s: float = 60.0) -> list[str]:
        children = [ChildPlan(name, [name], {}) for name in (ONE, TWO)]
        own = [sys.executable, "-S", supervised.__file__, str(self.folder)]
        plan = Plan(own, children, grace_s=0.0, kill_after_s=kill_s, log_format=log_format)
        return [sys.executable, "-P", "-m", "worker.supervisor", plan.to_json()]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT)}

    def events(self, *kinds: str) -> list[str]:
        """What happened, without the ids of processes."""
        words = [line.split() for line in self._lines()]
        return [f"{name} {what}" for name, what, *_ in words if not kinds or what in kinds]

    def pids(self, name: str) -> list[int]:
        """Of all processes that there were under that name."""
        return [int(line.split()[2]) for line in self._lines() if line.startswith(f"{name} start ")]

    def wait_for(self, *events: str) -> None:
        """All of these have happened, in whatever order, and as often as they are here."""
        wait_until(f"{events} to happen", lambda: all(self.events().count(e) >= events.count(e) for e in events))

    def _lines(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "events").read_text().splitlines()
        return []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    place.says(one="serve", two="serve")
    yield place
    for supervisor in place.started:
        supervisor.close()
    for name in (ONE, TWO):
        for pid in place.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def both_serve(supervisor: Command) -> None:
    wait_until("both to serve", lambda: f"2 of 2 processes serve: {ONE}, {TWO}" in supervisor.said())


def test_sigterm_drains_all_processes_and_ends_with_0(place: Place) -> None:
    supervisor = place.supervise()
    both_serve(supervisor)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert sorted(place.events("term")) == [f"{ONE} term", f"{TWO} term"]
    assert not any(is_alive(pid) for name in (ONE, TWO) for pid in place.pids(name))


def test_a_second_signal_is_handed_on(place: Place) -> None:
    place.says(one="patient", two="patient")
    supervisor = place.supervise()
    both_serve(supervisor)
    supervisor.send(signal.SIGINT)
    place.wait_for(f"{ONE} term", f"{TWO} term")
    assert supervisor.alive
    supervisor.send(signal.SIGINT)
    assert supervisor.wait() == 0
    assert len(place.events("term")) == 4


def test_a_process_that_does_not_stop_is_killed(place: Place) -> None:
    place.says(one="deaf")
    supervisor = place.supervise(kill_s=SOON_S)
    both_serve(supervisor)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 70
    assert f"{ONE} has not ended by itself: it is killed" in supervisor.said()
    assert f"{TWO} ended with status 0, as it was told to" in supervisor.said()


def test_a_supervisor_sleeps_while_one_drains_and_the_others_have_ended(place: Place) -> None:
    place.says(two="patient")
    supervisor = place.supervise()
    both_serve(supervisor)
    supervisor.send(signal.SIGTERM)
    place.wait_for(f"{TWO} term")
    wait_until("the first to end", lambda: f"{ONE} ended with status 0" in supervisor.said())
    fields = [Path(f"/proc/{supervisor.pid}/stat").read_text().split() for _ in range(2) if not time.sleep(0.4)]
    before, after = (int(fields[13]) + int(fields[14]) for fields in fields)
    assert after - before < 10, "hundredths of a second of its processor, of 40"
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0


def test_a_process_that_still_loads_has_nothing_to_drain(place: Place) -> None:
    place.says(one="load")
    supervisor = place.supervise()
    place.wait_for(f"{ONE} start", f"{TWO} ready")
    wait_until("the signal to have its default action", lambda: "NOTIFY_SOCKET is" in supervisor.said())
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0


def test_a_process_that_died_is_started_again_and_the_other_is_left_alone(place: Place) -> None:
    supervisor = place.supervise()
    both_serve(supervisor)
    os.kill(place.pids(ONE)[0], signal.SIGKILL)
    place.wait_for(f"{ONE} ready", f"{ONE} ready")
    assert f"{ONE} was ended by signal 9 and is started again in" in supervisor.said()
    assert (len(place.pids(ONE)), len(place.pids(TWO))) == (2, 1)


def test_a_model_that_cannot_be_served_is_told_once_with_status_2(place: Place) -> None:
    place.says(one="fail 2 there is no folder /nowhere", two="fail 2 there is no folder /nowhere")
    supervisor = place.supervise()
    assert supervisor.wait() == 2
    assert supervisor.said() == "error: there is no folder /nowhere\n"


def test_a_mistake_is_json_where_the_log_is(place: Place) -> None:
    place.says(one="fail 2 there is no folder /nowhere", two="fail 2 there is no folder /nowhere")
    supervisor = place.supervise(log_format="json")
    assert supervisor.wait() == 2
    (entry,) = [json.loads(line) for line in supervisor.said().splitlines()]
    assert (entry["level"], entry["message"]) == ("critical", "there is no folder /nowhere")


def test_mistakes_that_differ_are_all_told(place: Place) -> None:
    place.says(one="fail 2 port 1 is taken", two="fail 2 port 2 is taken")
    supervisor = place.supervise()
    assert supervisor.wait() == 2
    assert sorted(supervisor.said().splitlines()) == ["error: port 1 is taken", "error: port 2 is taken"]


def test_a_device_that_always_fails_does_not_stop_the_other(place: Place) -> None:
    place.says(one="fail 2 the device cannot be used")
    supervisor = place.supervise()
    place.wait_for(f"{ONE} start", f"{TWO} ready")
    wait_until("one to serve", lambda: f"1 of 2 processes serve: {TWO}" in supervisor.said())
    # SIGHUP asks for another try of what was given up for a minute.
    supervisor.send(signal.SIGHUP)
    place.wait_for(f"{ONE} start", f"{ONE} start", f"{TWO} ready", f"{TWO} ready")
    assert "ended with status 2 (the device cannot be used) and is started again" in supervisor.said()
    assert supervisor.alive


def test_a_redis_that_is_away_is_waited_for_longer_and_longer(place: Place) -> None:
    place.says(one="fail 3 Redis cannot be reached", two="fail 3 Redis cannot be reached")
    supervisor = place.supervise()
    said = rf"{ONE} ended with status 3 \(Redis cannot be reached\) and is started again in (\S+) s"
    wait_until("two ends", lambda: len(re.findall(said, supervisor.said())) >= 2)
    first, second = (float(seconds) for seconds in re.findall(said, supervisor.said())[:2])
    assert 1.0 <= first <= 2.0 <= second <= 4.0
    place.says(one="serve", two="serve")
    both_serve(supervisor)


def test_a_rolling_restart_stops_a_process_only_when_the_one_before_serves_again(place: Place) -> None:
    supervisor = place.supervise()
    both_serve(supervisor)
    before = len(place.events())
    supervisor.send(signal.SIGHUP)
    wait_until("the rolling restart", lambda: "rolling restart: done" in supervisor.said())
    assert place.events()[before:] == [
        f"{ONE} term", f"{ONE} start", f"{ONE} ready", f"{TWO} term", f"{TWO} start", f"{TWO} ready"
    ]  # fmt: skip
    assert "0 of 2" not in supervisor.said()


def test_a_rolling_restart_waits_for_one_that_does_not_come_back(place: Place) -> None:
    supervisor = place.supervise()
    both_serve(supervisor)
    place.says(one="fail 2 the new version is broken")
    supervisor.send(signal.SIGHUP)
    place.wait_for(f"{ONE} start", f"{ONE} start")
    wait_until("its end", lambda: "(the new version is broken) and is started again in" in supervisor.said())
    assert f"{TWO} term" not in place.events()
    place.says(one="serve")
    supervisor.send(signal.SIGHUP)
    wait_until("the rolling restart", lambda: "rolling restart: done" in supervisor.said())
    assert len(place.pids(TWO)) == 2


def test_a_stop_within_a_rolling_restart_is_no_second_signal(place: Place) -> None:
    place.says(one="patient")
    supervisor = place.supervise(kill_s=SOON_S)
    both_serve(supervisor)
    supervisor.send(signal.SIGHUP)
    place.wait_for(f"{ONE} term")
    supervisor.send(signal.SIGTERM)
    place.wait_for(f"{TWO} term")
    assert supervisor.wait() == 70, "the patient one was killed in the end"
    assert place.events("term") == [f"{ONE} term", f"{TWO} term"]


def test_systemd_hears_when_the_first_process_serves_and_that_it_stops(place: Place) -> None:
    address = str(place.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(PATIENCE_S)
        place.says(two="load")
        supervisor = place.supervise(NOTIFY_SOCKET=address)
        heard = [systemd.recv(4096).decode() for _ in range(2)]
        supervisor.send(signal.SIGTERM)
        assert supervisor.wait() == 0
        heard += [systemd.recv(4096).decode() for _ in range(2)]
    assert heard == ["READY=1", f"STATUS=1 of 2 processes serve: {ONE}", "STOPPING=1", "STATUS=0 of 2 processes serve"]
    assert "NOTIFY_SOCKET is None" in supervisor.said(), "systemd is the supervisor's to talk to"


def test_lines_bear_the_name_of_their_device(place: Place) -> None:
    supervisor = place.supervise()
    both_serve(supervisor)
    lines = supervisor.said().splitlines()
    assert f"[{ONE}] {ONE} has come up, NOTIFY_SOCKET is None" in lines
    assert f"[{TWO}] {TWO} has come up, NOTIFY_SOCKET is None" in lines


def test_a_log_of_json_stays_one_whatever_the_processes_write(place: Place) -> None:
    supervisor = place.supervise(log_format="json")
    both_serve(supervisor)
    entries = [json.loads(line) for line in supervisor.said().splitlines()]
    assert {"level": "info", "message": "as JSON", "device": ONE} in entries
    raw = [entry["message"] for entry in entries if entry.get("logger") == "stderr" and entry["device"] == TWO]
    assert raw == [f"{TWO} has come up, NOTIFY_SOCKET is None"]


def test_a_line_that_no_json_reader_takes_is_passed_on() -> None:
    assert json.loads(labelled_json(ONE)("[" * 60_000))["message"] == "[" * 60_000


def test_under_nohup_sighup_changes_nothing(place: Place) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    supervisor = place.supervise(sys.executable, "-c", ignoring)
    both_serve(supervisor)
    supervisor.send(signal.SIGHUP)
    supervisor.send(signal.SIGTERM)
    assert supervisor.wait() == 0
    assert "rolling restart" not in supervisor.said()


def test_a_terminal_that_is_closed_ends_a_supervisor_as_it_does_a_worker(place: Place) -> None:
    log = place.folder / "terminal.log"
    controller, terminal = pty.openpty()
    with log.open("wb") as output:
        # A session of its own, whose terminal this is.
        take = (
            f"import fcntl, os, signal, sys, termios; fcntl.ioctl({terminal}, termios.TIOCSCTTY, 0); "
            "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # these tests may run under nohup
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        supervisor = subprocess.Popen(
            [sys.executable, "-c", take, *place.command()], stderr=output, pass_fds=[terminal],
            start_new_session=True, env=place.environment,
        )  # fmt: skip
    os.close(terminal)
    wait_until("both to serve", lambda: "2 of 2 processes serve" in log.read_text())
    os.kill(supervisor.pid, signal.SIGHUP)
    place.wait_for(f"{ONE} ready", f"{ONE} ready")
    wait_until("the rolling restart", lambda: "rolling restart: done" in log.read_text())
    os.close(controller)
    assert supervisor.wait(PATIENCE_S) == 0


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
