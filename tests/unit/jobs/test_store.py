"""The store: one winner of each name, no store that is another's, and errors that say where."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore
import orjson
import pytest
from obstore.exceptions import GenericError

import jobs.calls
from jobs.errors import ForeignStoreError, InputError, NotFoundError, StoreUnavailableError, WrongStoreError
from jobs.store import Store
from tests.job_work import memory_store

WRITERS = 24


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return memory_store() if request.param == "memory" else Store.open(str(tmp_path / "store"), create=True)


def race(count: int, call: Callable[[int], Any]) -> list[Any]:
    """``call`` from ``count`` threads at once."""
    gate = threading.Barrier(count)

    def enter(index: int) -> Any:
        gate.wait()
        return call(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(enter, range(count)))


# -- Files.


def test_of_many_writers_of_a_name_exactly_one_wins_and_its_bytes_stay(store: Store) -> None:
    for name in ("jobs/a.json", "jobs/b.json", "jobs/c.json"):
        won = race(WRITERS, lambda index, name=name: store.put_if_absent(name, b"%d" % index))  # type: ignore[misc]
        assert won.count(True) == 1
        assert store.get(name) == b"%d" % won.index(True)
        assert not store.put_if_absent(name, b"late")
        assert store.get(name) == b"%d" % won.index(True)


def test_a_file_that_is_not_there_is_said_with_its_place(store: Store) -> None:
    with pytest.raises(NotFoundError, match=r"data/s1/plan\.json"):
        store.get("data/s1/plan.json")
    assert not store.exists("data/s1/plan.json")


def test_an_empty_file_exists(store: Store) -> None:
    store.put_if_absent("results/job_id=a/_SUCCESS", b"")
    assert store.exists("results/job_id=a/_SUCCESS")
    assert store.get("results/job_id=a/_SUCCESS") == b""


def test_a_listing_shows_what_is_below_a_folder_and_nothing_beside_it(store: Store) -> None:
    for path in ("data/s1/parts/a", "data/s1/parts/b", "data/s1/input/a", "data/s10/parts/a", "jobs/a.json"):
        store.put_if_absent(path, b"12345")
    found = list(store.list("data/s1"))
    assert sorted(item.path for item in found) == ["data/s1/input/a", "data/s1/parts/a", "data/s1/parts/b"]
    assert {item.size for item in found} == {5}
    assert all(item.modified.tzinfo is not None for item in found)
    assert list(store.list("data/unknown")) == []


def test_a_listing_of_many_files_is_whole(store: Store) -> None:
    for index in range(1_200):
        obstore.put(store._backend, f"data/s1/parts/{index}", b"")
    assert len({item.path for item in store.list("data/s1/parts")}) == 1_200


def test_deleting_what_is_gone_is_no_error(store: Store) -> None:
    store.put_if_absent("jobs/a.json", b"1")
    store.delete(["jobs/a.json", "jobs/b.json"])
    store.delete(["jobs/a.json"])
    assert not store.exists("jobs/a.json")
    assert store.put_if_absent("jobs/a.json", b"2")


# -- Local disk.


@pytest.mark.parametrize("name", ["my store", "ünï", "a#b", "100%", "q?x=[1]&y", "a%20b", "x'y", "-dash", "dots.."])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    store = Store.open(str(root), create=True)
    assert store.put_if_absent("results/job_id=a/data-00000.parquet", b"1")
    assert Path(store.locate("results/job_id=a/data-00000.parquet")).read_bytes() == b"1"
    assert [item.path for item in store.list("results")] == ["results/job_id=a/data-00000.parquet"]
    assert Store.open(str(root)).id == store.id


def test_a_folder_is_named_by_path_url_or_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    identity = Store.open("store", create=True).id
    (tmp_path / "link").symlink_to(tmp_path / "store")
    for uri in (f"file://{tmp_path}/store", "~/store", "./store", "store/", "link", f"{tmp_path}/store"):
        store = Store.open(uri)
        assert (store.id, store.is_local) == (identity, True)
        assert store.locate("jobs/a.json").startswith("/")


def test_a_file_and_its_folder_are_on_the_disk_when_it_is_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    parts = tmp_path / "store/data/s1/parts"
    for expected in (True, False):  # a loser must not tell the ledger of a file that may still be lost
        synced.clear()
        assert store.put_if_absent("data/s1/parts/part-00000.parquet", b"1") is expected
        assert synced == [str(parts / "part-00000.parquet"), str(parts)]


# -- Which store it is.


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """A volume that is not mounted: what is put there now would be on another disk."""
    store = Store.open(str(tmp_path / "store"), create=True)
    for there in (True, False):
        (tmp_path / "store").rename(tmp_path / "away")
        if there:  # an empty mount point
            (tmp_path / "store").mkdir()
        for sync in (True, False):
            with pytest.raises(StoreUnavailableError, match=r"is gone: _promptmill\.json is not there any more"):
                store.put_if_absent("data/s/parts/part-00000.parquet", b"1", sync=sync)
        assert list(tmp_path.glob("store/*")) == []
        if there:
            (tmp_path / "store").rmdir()
        (tmp_path / "away").rename(tmp_path / "store")
    assert store.put_if_absent("data/s/parts/part-00000.parquet", b"1")


def test_another_store_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    (tmp_path / "store").rename(tmp_path / "away")
    Store.open(str(tmp_path / "store"), create=True)
    for use in (store.require, lambda: store.put_if_absent("jobs/a.json", b"1")):
        with pytest.raises(ForeignStoreError, match=f"another one by now .* it was {store.id}"):
            use()
    assert not (tmp_path / "store" / "jobs").exists()


def test_a_store_keeps_its_id_and_another_has_another(tmp_path: Path) -> None:
    first = Store.open(str(tmp_path / "a"), create=True)
    assert Store.open(str(tmp_path / "a"), create=True).id == first.id
    assert Store.open(str(tmp_path / "b"), create=True).id != first.id
    record = orjson.loads((tmp_path / "a/_promptmill.json").read_bytes())
    assert record == {"store_id": first.id, "version": 1}


def test_many_who_open_a_new_folder_at_once_agree_on_its_id(tmp_path: Path) -> None:
    stores = race(WRITERS, lambda _: Store.open(str(tmp_path / "store"), create=True))
    assert len({store.id for store in stores}) == 1


def test_a_new_store_holds_nothing_but_its_record(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), create=True)
    assert [item.path for item in store.list("")] == ["_promptmill.json"]


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"jpg")
    for create in (True, False):
        with pytest.raises(ForeignStoreError, match=r"photo\.jpg"):
            Store.open(str(tmp_path), create=create)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'"x"', b"\xff", b'{"store_id": "a"}', b"[1, 2]"])
def test_a_record_that_is_not_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_promptmill.json").write_bytes(content)
    with pytest.raises(ForeignStoreError, match="not one of Promptmill's"):
        Store.open(str(tmp_path), create=True)


def test_a_store_of_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    (tmp_path / "_promptmill.json").write_bytes(b'{"store_id": "a", "version": 2}')
    with pytest.raises(ForeignStoreError, match="upgrade promptmill"):
        Store.open(str(tmp_path))


def test_only_who_may_create_a_store_does(tmp_path: Path) -> None:
    for place in (tmp_path / "new", tmp_path):
        with pytest.raises(StoreUnavailableError, match="PROMPTMILL_STORE"):
            Store.open(str(place))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("place", ["absent", "empty", "photos", "other", "memory://"])
def test_a_store_that_has_to_be_there_is_neither_founded_nor_exchanged(
    tmp_path: Path, place: str, create: bool
) -> None:
    """An unmounted disk, a mistyped bucket, another disk."""
    wanted = Store.open(str(tmp_path / "store"), create=True).id
    other = Store.open(str(tmp_path / "other"), create=True).id
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    before = sorted(tmp_path.rglob("*"))
    where = place if "://" in place else str(tmp_path / place)
    found = {"absent": "there is no such folder", "other": f"another one is, {other}"}
    with pytest.raises(WrongStoreError) as raised:
        Store.open(where, create=create, wanted=wanted)
    assert str(raised.value).startswith(
        f"store {where}: the one with the id {wanted} has to be there (PROMPTMILL_STORE_ID), "
        f"but {found.get(place, '_promptmill.json is not there')}: mount it, "
    )
    assert sorted(tmp_path.rglob("*")) == before
    assert Store.open(str(tmp_path / "store"), create=create, wanted=wanted).id == wanted


@pytest.mark.parametrize("create", [True, False])
def test_a_place_that_cannot_be_a_folder_is_said_by_name(tmp_path: Path, create: bool) -> None:
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below", "x" * 300):
        with pytest.raises(StoreUnavailableError, match=place):
            Store.open(str(tmp_path / place), create=create)


def test_a_folder_without_write_permission_is_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A superuser may write anywhere, so the system's answer is put in its place.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreUnavailableError, match="cannot be written"):
        Store.open(str(tmp_path), create=True)


@pytest.mark.parametrize("uri", ["ftp://host/x", "redis://host", "S4://bucket"])
def test_an_unknown_kind_of_store_is_a_wrong_argument(uri: str) -> None:
    with pytest.raises(InputError, match="unknown scheme"):
        Store.open(uri, create=True)


def test_the_home_of_nobody_is_a_wrong_argument_and_no_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no such home folder"):
        Store.open("~nobody-of-that-name/store", create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    ["s3://id:secret-word@bucket/prefix", "https://user:secret-word@host/store", "az://container/x?sig=secret-word"],
)
def test_a_place_that_holds_a_secret_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(InputError, match="the URI holds a password or a signature") as raised:
        Store.open(uri, create=True)
    assert "secret-word" not in str(raised.value)


def test_a_container_of_azure_may_be_named_as_its_tools_do() -> None:
    assert Store._connect("abfss://container@account.dfs.core.windows.net/x", create=True).uri.startswith("abfss://")


def test_the_login_of_an_endpoint_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "x", "REGION": "us-east-1", "ALLOW_HTTP": "true",
                        "ENDPOINT_URL": "http://user:secret-word@127.0.0.1:1"}.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(jobs.calls, "_ATTEMPTS", 1)
    with pytest.raises(StoreUnavailableError, match=r"http://\*\*\*@127\.0\.0\.1:1/bucket") as raised:
        Store.open("s3://bucket", create=True)
    assert "secret-word" not in str(raised.value)


def test_a_store_that_was_not_opened_has_no_id() -> None:
    with pytest.raises(StoreUnavailableError, match="was not opened"):
        _ = Store._connect("memory://", create=True).id


# -- Endpoints that misbehave.


def test_a_place_that_ignores_put_if_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = obstore.put

    def put(backend: Any, path: str, content: bytes, *, mode: str, **options: Any) -> Any:
        return real(backend, path, content, mode="overwrite", **options)

    monkeypatch.setattr(obstore, "put", put)
    with pytest.raises(StoreUnavailableError, match="ignores put-if-absent"):
        memory_store()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without their waits."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("hasty")
def test_a_put_whose_answer_was_lost_has_still_won(monkeypatch: pytest.MonkeyPatch) -> None:
    store, real, calls = memory_store(), obstore.put, []

    def put(*args: Any, **options: Any) -> Any:
        calls.append(1)
        answer = real(*args, **options)
        if len(calls) == 1:
            raise GenericError("timed out")
        return answer

    monkeypatch.setattr(obstore, "put", put)
    assert store.put_if_absent("jobs/a.json", b"mine")
    calls.clear()
    real(store._backend, "jobs/b.json", b"another's")
    monkeypatch.setattr(obstore, "put", _failing_once(real))
    assert not store.put_if_absent("jobs/b.json", b"mine")


def _failing_once(real: Callable[..., Any]) -> Callable[..., Any]:
    failures = [GenericError("timed out")]

    def call(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*args, **options)

    return call


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("name", ["get", "head", "delete"])
def test_a_call_that_fails_once_is_repeated(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store = memory_store()
    store.put_if_absent("jobs/a.json", b"1")
    monkeypatch.setattr(obstore, name, _failing_once(getattr(obstore, name)))
    assert store.exists("jobs/a.json")
    assert store.get("jobs/a.json") == b"1"
    store.delete(["jobs/a.json"])
    assert not store.exists("jobs/a.json")


@pytest.mark.usefixtures("hasty")
def test_a_store_that_stays_away_is_said_to_be_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store()

    def away(*args: Any, **options: Any) -> Any:
        raise GenericError("connection refused\n\nDebug source: ...")

    for name in ("put", "get", "head", "delete", "list"):
        monkeypatch.setattr(obstore, name, away)
    calls: list[Callable[[], Any]] = [
        lambda: store.put_if_absent("a", b""), lambda: store.get("a"), lambda: store.exists("a"),
        lambda: store.delete(["a"]), lambda: list(store.list("a")),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(StoreUnavailableError, match=r"^store memory://: connection refused$"):
            call()


@pytest.mark.parametrize("has_syncfs", [True, False])
def test_files_that_were_put_without_waiting_for_the_disk_are_on_it_after_their_folder_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_syncfs: bool
) -> None:
    if not has_syncfs:
        monkeypatch.setattr("sys.platform", "darwin")
    opened = Store.open(str(tmp_path / "store"), create=True)
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    for name in ("a", "b"):
        assert opened.put_if_absent(f"folder/{name}", b"content", sync=False)
    assert synced == []
    opened.sync_folder("folder")
    opened.sync_folder("absent")
    folder = tmp_path / "store" / "folder"
    # The folders above too: nobody would find new ones without them.
    expected = {str(folder / "a"), str(folder / "b"), str(folder), str(folder.parent)}
    assert set(synced) == (set() if has_syncfs and sys.platform == "linux" else expected)
