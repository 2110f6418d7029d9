"""What a worker tells whoever supervises it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Its socket, and its address where a service finds it."""
    abstract = f"promptmill-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if request.param == "abstract":
            receiver.bind(f"\0{abstract}")
            monkeypatch.setenv("NOTIFY_SOCKET", f"@{abstract}")
        else:
            receiver.bind(str(tmp_path / "notify"))
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


def test_it_says_once_that_it_is_ready(systemd: socket.socket) -> None:
    with contextlib.closing(Notifier.to_supervisor()) as notifier:
        notifier.ready()
        notifier.ready()
        notifier.tell("STOPPING=1", "STATUS=draining")
    assert [systemd.recv(4096) for _ in range(2)] == [b"READY=1", b"STOPPING=1\nSTATUS=draining"]


def test_its_own_processes_do_not_find_the_address(systemd: socket.socket) -> None:
    Notifier.to_supervisor().close()
    assert "NOTIFY_SOCKET" not in os.environ


def test_a_supervisor_of_ours_goes_first(systemd: socket.socket) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, contextlib.closing(Notifier.to_supervisor(theirs.detach())) as notifier:
        notifier.ready()
        assert ours.recv(4096) == b"READY=1"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/nowhere/notify"])
def test_where_nobody_listens_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier.to_supervisor()
    notifier.ready()
    notifier.tell("STOPPING=1")


def test_a_supervisor_that_has_gone_is_not_missed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    notifier = Notifier(theirs)
    ours.close()
    notifier.ready()
    notifier.close()
