"""Redis over TLS: the whole way with an authority of one's own, and one line about whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mill import Mill
from tests.redis_server import Server
from tests.redis_users import SECRETS, login
from tests.refusals import GOOD, assert_refused, submit
from tests.tls import Authority, tls_door


@dataclass(frozen=True)
class Doors:
    """Ports with TLS before one server, and the files of those who may come in."""

    good: int
    expired: int
    misnamed: int
    #: Wants a client certificate.
    mutual: int
    ours: Path
    strangers: Path
    client: Path
    stranger: Path

    def url(self, port: int, **files: object) -> str:
        query = "&".join(f"ssl_{name}={value}" for name, value in files.items())
        return f"rediss://{login('producer')}127.0.0.1:{port}/0?{query}"


@pytest.fixture(scope="module")
def doors(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    ours = Authority(tmp_path_factory.mktemp("ours"))
    others = Authority(tmp_path_factory.mktemp("others"), "stranger")
    with (
        tls_door(server.port, ours.certificate("good")) as good,
        tls_door(server.port, ours.certificate("expired", days=(-3, -1))) as expired,
        tls_door(server.port, ours.certificate("misnamed", "redis.example")) as misnamed,
        tls_door(server.port, ours.certificate("mutual"), clients=ours.file) as mutual,
    ):
        client, stranger = ours.certificate("client"), others.certificate("nobody")
        yield Doors(good, expired, misnamed, mutual, ours.file, others.file, client, stranger)


def test_a_job_goes_all_the_way_over_tls_with_client_certificates(
    server: Server, doors: Doors, tiny: Path, tmp_path: Path
) -> None:
    url = doors.url(doors.mutual, ca_certs=doors.ours, certfile=doors.client, keyfile=doors.client)
    mill = Mill(tmp_path, url)
    try:
        mill.workers("tiny", tiny, 1)
        job = mill.call("submit", mill.prompts("private", 30), "--model", "tiny", "--max-tokens", "3").ok().out.strip()
        assert mill.wait_for(job, "completed")["rows"]["completed"] == 30
    finally:
        mill.close()
    assert server.client.exists(f"promptmill:{mill.store.id}:celery:_kombu.binding.permits.tiny")


SILENCE = "TLS to a port without"
_REFUSED: dict[str, tuple[Callable[[Doors, Server], str], int, str]] = {
    "an authority that nobody named": (
        lambda d, _: d.url(d.good), 3, "unable to get local issuer certificate (TLS); ?ssl_ca_certs=FILE names",
    ),
    "another authority": (
        lambda d, _: d.url(d.good, ca_certs=d.strangers), 3, "certificate verify failed: unable to get local issuer",
    ),
    "a certificate that has expired": (
        lambda d, _: d.url(d.expired, ca_certs=d.ours), 3, "certificate has expired",
    ),
    "another host's certificate": (
        lambda d, _: d.url(d.misnamed, ca_certs=d.ours), 3, "certificate is not valid for '127.0.0.1'",
    ),
    "no client certificate": (
        lambda d, _: d.url(d.mutual, ca_certs=d.ours), 3, "(TLS without a client certificate)",
    ),
    "a stranger's client certificate": (
        lambda d, _: d.url(d.mutual, ca_certs=d.ours, certfile=d.stranger, keyfile=d.stranger), 3, "(TLS with a client",
    ),
    "no TLS to a port that has it": (
        lambda d, _: d.url(d.good).replace("rediss:", "redis:").rstrip("?"), 3, "(without TLS)",
    ),
    SILENCE: (
        lambda d, s: d.url(s.port, ca_certs=d.ours), 3, "in time over TLS: a port without TLS is redis://",
    ),
    "a file of authorities that is not there": (
        lambda d, _: d.url(d.good, ca_certs="/nowhere"), 2, "ssl_ca_certs=/nowhere does not hold certificates: No such",
    ),
    "a key for another certificate": (
        lambda d, _: d.url(d.mutual, ca_certs=d.ours, certfile=d.client, keyfile=d.stranger), 2, "key values mismatch",
    ),
    "a key without its certificate": (
        lambda d, _: d.url(d.mutual, ca_certs=d.ours, keyfile=d.client), 2, "ssl_keyfile wants the ssl_certfile",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trouble", _REFUSED)
def test_what_is_wrong_with_tls_is_told_in_a_line(
    idle: Mill, server: Server, doors: Doors, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == SILENCE:  # all others answer, sooner or later
        monkeypatch.setattr("jobs.ledger.connection.SOCKET_TIMEOUT_S", 0.5)
    url, code, said = _REFUSED[trouble]
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL=url(doors, server))

    assert_refused(idle, done, said, code=code)
    assert not any(secret in done.err for secret in SECRETS)


def test_a_worker_that_does_not_trust_its_redis_ends_before_it_loads_a_model(
    idle: Mill, doors: Doors, tiny: Path
) -> None:
    worker = idle.worker("tiny", tiny, PROMPTMILL_REDIS_URL=doors.url(doors.good, ca_certs=doors.strangers))

    assert worker.wait() == 3
    assert worker.said().startswith(
        f"error: Redis at 127.0.0.1:{doors.good} cannot be reached: certificate verify failed"
    )
