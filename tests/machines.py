"""Hosts with a name and an address each, joined by a switch: network namespaces of Linux, as root or as anybody.

A process that calls ``Host.enter()`` is on that host from then on: it has its host name, its address, and a network in
which there is nothing but the other hosts. Cables can be pulled, and what one host sends to another can get lost.

The namespaces belong to a process of their own, the switch (``python tests/machines.py``), which takes commands by
lines of JSON; they go with it and with the last process that is in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NEWUTS, _NEWUSER, _NEWNET = 0x0400_0000, 0x1000_0000, 0x4000_0000
#: Within the namespaces only: they lead nowhere.
_NET = "10.77.0"
#: An address that no host has: what is sent there arrives nowhere.
_NOBODY = "02:00:00:00:00:99"
_PERMANENT = 0x80

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    address: str
    #: Of its namespaces, each with its kind; in the order in which they have to be entered.
    namespaces: tuple[tuple[str, int], ...]

    def enter(self) -> None:
        """Put this process on the host. It must have one thread only: call it right after a fork."""
        for path, kind in self.namespaces:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _check(_libc.setns(handle, kind))
            finally:
                os.close(handle)


class Machines:
    """The hosts that ``names`` names. Raises OSError, which says why, where the machine lets nobody make any."""

    def __init__(self, names: Sequence[str]) -> None:
        self._switch = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            made = self._answer()
        except OSError:
            self.close()
            raise
        self.hosts = {
            name: Host(name, address, tuple((path, kind) for path, kind in namespaces))
            for name, address, namespaces in made
        }

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @contextlib.contextmanager
    def unplugged(self, *names: str) -> Iterator[None]:
        """The cables of these hosts are pulled: nobody hears of them, nor they of anybody."""
        with self._while("unplug", "plug", [[name] for name in names]):
            yield

    @contextlib.contextmanager
    def severed(self, one: str, other: str) -> Iterator[None]:
        """What the two send each other gets lost without a word; both reach the other hosts."""
        with self._while("lose", "deliver", [[one, other], [other, one]]):
            yield

    @contextlib.contextmanager
    def losing(self, sender: str, receiver: str) -> Iterator[None]:
        """What ``sender`` sends to ``receiver`` gets lost, but not what comes back."""
        with self._while("lose", "deliver", [[sender, receiver]]):
            yield

    @contextlib.contextmanager
    def slowed(self, name: str, bytes_per_s: int) -> Iterator[None]:
        """What the host sends leaves it so slowly. Raises OSError where the kernel cannot do that."""
        self._do("slow", name, bytes_per_s)
        try:
            yield
        finally:
            self._do("hasten", name)

    def close(self) -> None:
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.close()
        self._switch.wait()
        self._switch.stdout.close()

    @contextlib.contextmanager
    def _while(self, begin: str, end: str, each: Sequence[Sequence[str]]) -> Iterator[None]:
        for names in each:
            self._do(begin, *names)
        try:
            yield
        finally:
            for names in each:
                self._do(end, *names)

    def _do(self, verb: str, *arguments: Any) -> Any:
        assert self._switch.stdin is not None
        print(json.dumps([verb, *arguments]), file=self._switch.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._switch.stdout is not None
        line = self._switch.stdout.readline()
        answer = json.loads(line) if line else {"error": "the switch ended"}
        if "error" in answer:
            raise OSError(answer["error"])
        return answer["ok"]


class _Switch:
    """All of it, in the process that has made the namespaces. It has one thread: it could not make them else."""

    def __init__(self, names: Sequence[str]) -> None:
        self._own_user = _leave_network()
        from pyroute2 import IPRoute  # now: what it opens is to be in the new network

        self._iproute = IPRoute
        self._ports = IPRoute()
        # No waiting for other switches before it forwards anything.
        self._ports.link("add", ifname="switch", kind="bridge", br_forward_delay=0)
        [self._bridge] = self._ports.link_lookup(ifname="switch")
        self._ports.link("set", index=self._bridge, state="up")
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._links: dict[str, Any] = {}
        self._addresses: dict[str, str] = {}
        self.made = [self._make(name, f"{_NET}.{number}") for number, name in enumerate(names, start=1)]

    def _make(self, name: str, address: str) -> tuple[str, str, list[tuple[str, int]]]:
        _check(_libc.unshare(_NEWNET | _NEWUTS))
        _check(_libc.sethostname(name.encode(), len(name)))
        # A netlink socket stays in the network in which it was opened.
        self._links[name], self._addresses[name] = self._iproute(), address
        net, uts = (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts"))
        _check(_libc.setns(self._home, _NEWNET))
        self._ports.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": net})
        self._ports.link("set", index=self._port(name), master=self._bridge, state="up")
        link = self._links[name]
        link.addr("add", index=self._card(name), address=address, prefixlen=24)
        for index in (self._card(name), 1):  # and its loopback
            link.link("set", index=index, state="up")
        own = f"/proc/{os.getpid()}"
        user = [(f"{own}/ns/user", _NEWUSER)] if self._own_user else []
        return name, address, [*user, (f"{own}/fd/{net}", _NEWNET), (f"{own}/fd/{uts}", _NEWUTS)]

    def unplug(self, name: str) -> None:
        self._ports.link("set", index=self._port(name), state="down")

    def plug(self, name: str) -> None:
        self._ports.link("set", index=self._port(name), state="up")

    def lose(self, sender: str, receiver: str) -> None:
        self._links[sender].neigh(
            "replace", dst=self._addresses[receiver], lladdr=_NOBODY, ifindex=self._card(sender), state=_PERMANENT
        )

    def deliver(self, sender: str, receiver: str) -> None:
        self._links[sender].neigh("del", dst=self._addresses[receiver], ifindex=self._card(sender))

    def slow(self, name: str, bytes_per_s: int) -> None:
        options = {"rate": bytes_per_s, "burst": 2_000, "limit": 30_000}
        self._links[name].tc("add", "tbf", self._card(name), "1:", **options)

    def hasten(self, name: str) -> None:
        self._links[name].tc("del", index=self._card(name), root=True)

    def _port(self, name: str) -> int:
        [index] = self._ports.link_lookup(ifname=name)
        return int(index)

    def _card(self, name: str) -> int:
        [index] = self._links[name].link_lookup(ifname="eth0")
        return int(index)


def _leave_network() -> bool:
    """Leave this machine's network; True where that took a user namespace, in which this process is root."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEWNET | _NEWUTS) == 0:
        return False
    _check(_libc.unshare(_NEWUSER | _NEWNET | _NEWUTS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return True


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no network namespaces here: {os.strerror(number)}")


def main(names: Sequence[str]) -> None:
    def answer(call: Any) -> bool:
        try:
            reply = {"ok": call()}
        except Exception as error:  # told to the other side, which raises it
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)
        return "ok" in reply

    made: list[_Switch] = []

    def make() -> Any:
        made.append(_Switch(names))
        return made[0].made

    if not answer(make):
        return
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        answer(lambda verb=verb, arguments=arguments: getattr(made[0], verb)(*arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
