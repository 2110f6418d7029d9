"""A password of Redis is changed in the middle of a job: whoever has it from a file goes on without a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from fault_work import assert_whole, submit

from jobs.ledger.connection import connect
from jobs.permits import Permits, make_app
from jobs.settings import Settings
from tests.mill import Mill
from tests.patience import wait_until
from tests.ports import free_port
from tests.redis_server import Server
from tests.redis_users import User, as_user, password
from tests.redis_users import refused as refused_commands

pytestmark = pytest.mark.faults

ROWS = 240
USERS: tuple[User, ...] = ("producer", "worker")


@pytest.fixture
def own_mill(tmp_path: Path, own_server: Server) -> Iterator[Mill]:
    """Its own commands log in as the admin, whose password stays."""
    mill = Mill(tmp_path, as_user(own_server.url, "admin"))
    yield mill
    mill.close()


#: Who has all of the URL in a file, and not the password alone.
WHOLE = "producer"


def from_files(server: Server, user: User) -> dict[str, str]:
    """The settings of one whose password, or URL, is in a file."""
    put(server, user, password(user))
    url, file = f"redis://promptmill-{user}@127.0.0.1:{server.port}/0", str(server.folder / f"{user}.secret")
    if user == WHOLE:
        return {"PROMPTMILL_REDIS_URL": "", "PROMPTMILL_REDIS_URL_FILE": file}
    return {"PROMPTMILL_REDIS_URL": url, "PROMPTMILL_REDIS_PASSWORD_FILE": file}


def put(server: Server, user: User, secret: str) -> None:
    """Into its file, all at once, as Kubernetes does it."""
    url = f"redis://promptmill-{user}:{quote(secret, safe='')}@127.0.0.1:{server.port}/0"
    new = server.folder / f"{user}.new"
    new.write_text(url if user == WHOLE else secret)
    new.rename(server.folder / f"{user}.secret")


def change(server: Server, user: User, *rules: str) -> None:
    server.client.execute_command("ACL", "SETUSER", f"promptmill-{user}", *rules)


def cut(server: Server, user: User) -> None:
    """Its connections: those that are logged in stay so, whatever becomes of the password."""
    server.client.execute_command("CLIENT", "KILL", "USER", f"promptmill-{user}")


def connected(server: Server, user: User) -> bool:
    return any(client["user"] == f"promptmill-{user}" for client in server.client.client_list())


def test_worker_and_exporter_go_on_with_the_new_password(own_mill: Mill, own_server: Server, tiny: Path) -> None:
    mill, server, port = own_mill, own_server, str(free_port())
    worker = mill.worker("tiny", tiny, **from_files(server, "worker"))
    exporter = mill.start("exporter", "--port", port, name="exporter", **from_files(server, "producer"))
    mill.wait_for_workers([worker])
    wait_until("the exporter to log in", lambda: connected(server, "producer"))
    with mill.held(batch=ROWS // 8 // 2):
        job = submit(mill, "rotated", ROWS, 8)

        for user in USERS:  # as docs/security.md says: both are valid until nobody has the old one
            mill.wait_for_rows(job, 8)
            change(server, user, ">new-one")
            put(server, user, "new-one")
            change(server, user, f"<{password(user)}")
            cut(server, user)
            wait_until(f"the {user} to be back", lambda user=user: connected(server, user))  # type: ignore[misc]
        assert mill.status(job)["status"] == "in_progress"

    # At once, and before the files have it: all are refused for a while.
    for user in USERS:
        change(server, user, "resetpass", ">the-next")
        cut(server, user)
    refused = "refuses the user name or password"
    wait_until("both to be refused", lambda: refused in worker.said() and refused in exporter.said())
    for user in USERS:
        put(server, user, "the-next")
    assert_whole(mill, job, ROWS)
    wait_until("both to be back", lambda: all(connected(server, user) for user in USERS))
    wait_until("the exporter to say so", lambda: ": works again" in exporter.said())

    assert worker.alive
    assert exporter.alive
    said = worker.said() + exporter.said()
    assert "new-one" not in said
    assert "Traceback" not in said
    assert refused_commands(server.client) == []


def test_a_login_whose_file_has_gone_stays_as_it_was(
    own_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    file.write_text(password("producer"))
    url = f"redis://promptmill-producer@127.0.0.1:{own_server.port}/0"
    client = connect(Settings.load(redis_url=url, redis_password_file=str(file)).redis)
    file.unlink()
    assert client.ping()
    client.close()
    assert "the login of Redis cannot be read, and stays as it was: PROMPTMILL_REDIS_PASSWORD_FILE" in caplog.text


def test_permits_go_over_a_socket_with_the_login_of_a_file(tmp_path: Path) -> None:
    """kombu takes all of a socket's address apart by itself."""
    folder = tmp_path / "redis"
    server = Server(folder, f'unixsocket "{folder}/s"').start()
    (tmp_path / "password").write_text(password("producer"))
    settings = Settings.load(
        redis_url=f"unix://promptmill-producer@{folder}/s?db=0", redis_password_file=str(tmp_path / "password")
    )
    permits = Permits(make_app(settings.redis, "0" * 16), "0" * 16)
    permits.send("tiny")
    assert server.client.llen(permits.queue_key("tiny")) == 1
    permits.close()
    server.close()
