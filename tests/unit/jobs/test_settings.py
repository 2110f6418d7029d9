"""Settings: the environment, the local run's server, and values that are refused by name."""

from __future__ import annotations

import json
import os
import re
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from celery import Celery
from pydantic import ValidationError
from redis.connection import parse_url

from jobs.errors import InputError
from jobs.permits import broker_url
from jobs.secret_files import UrlFromFiles, redis_variables
from jobs.settings import DEFAULT_REDIS_URL, Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the machine that runs the tests, and an empty folder without .env."""
    for name in [name for name in os.environ if name.startswith("PROMPTMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def leave_local(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_local.json").write_text(content, encoding="utf-8")


def test_the_defaults_are_those_that_the_documents_promise() -> None:
    settings = Settings.load()
    assert (settings.store, settings.redis) == ("./promptmill-data", "redis://127.0.0.1:6379/0")
    assert (settings.lease_s, settings.sweep_s) == (60.0, 5.0)
    assert (settings.log_level, settings.log_format) == ("info", "text")


def test_flags_win_over_the_environment_and_that_over_the_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PROMPTMILL_STORE=from-file\nPROMPTMILL_LEASE_S=30\nOTHER=1\n", encoding="utf-8")
    assert Settings.load().store == "from-file"
    monkeypatch.setenv("PROMPTMILL_STORE", "from-environment")
    assert Settings.load().store == "from-environment"
    assert Settings.load(store=None).store == "from-environment"
    assert Settings.load(store="from-flag").store == "from-flag"
    assert Settings.load().lease_s == 30.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_S", "soon"), ("LEASE_S", "0.5"), ("LEASE_S", "nan"), ("LEASE_S", "86401"), ("SWEEP_S", "0"),
        ("MIN_FREE_MB", "inf"), ("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml"),
        ("STORE_ID", "0123456789ABCDEF"), ("STORE_ID", "s3://bucket"), ("STORE_ID", "0123456789abcdef0"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"PROMPTMILL_{name}", value)
    with pytest.raises(InputError, match=f"^PROMPTMILL_{name}: .*{value}"):
        Settings.load()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings.load().store = "other"  # type: ignore[misc]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_the_server_that_a_local_run_left_is_used(tmp_path: Path, form: str) -> None:
    leave_local(tmp_path / "data", json.dumps({"redis_url": "unix:///tmp/x.sock"}))
    store = form.format(tmp_path / "data")
    assert Settings.load(store=store).redis == "unix:///tmp/x.sock"
    assert Settings.load(store=store, redis_url="redis://db").redis == "redis://db"


def test_the_local_server_is_found_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    leave_local(tmp_path / "data", json.dumps({"redis_url": "redis://h:1"}))
    assert Settings.load(store="~/data").redis == "redis://h:1"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"redis_url": 1}', "null"])
def test_a_local_file_that_says_nothing_is_passed_over(tmp_path: Path, content: str) -> None:
    leave_local(tmp_path, content)
    assert Settings.load(store=str(tmp_path)).redis == DEFAULT_REDIS_URL


def test_a_remote_store_has_no_local_server() -> None:
    assert Settings.load(store="s3://bucket/prefix").redis == DEFAULT_REDIS_URL


def secret(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


@pytest.mark.parametrize(
    ("url", "complete"),
    [
        ("redis://worker@h:1/2", "redis://worker:{}@h:1/2"),
        ("redis://worker:@h", "redis://worker:{}@h"),
        ("redis://h?db=3", "redis://:{}@h?db=3"),
        ("rediss://worker@[::1]:7/0?ssl_ca_certs=/a/b@c", "rediss://worker:{}@[::1]:7/0?ssl_ca_certs=/a/b@c"),
        ("unix:///tmp/x.sock?db=1", "unix://:{}@/tmp/x.sock?db=1"),
        ("unix://worker@/tmp/x.sock", "unix://worker:{}@/tmp/x.sock"),
        (None, "redis://:{}@127.0.0.1:6379/0"),
    ],
)
def test_a_password_file_completes_the_url_whatever_the_password_holds(
    monkeypatch: pytest.MonkeyPatch, url: str | None, complete: str
) -> None:
    password = " p@s/s:w#o?r%d&é;+ "
    monkeypatch.setenv("PROMPTMILL_REDIS_PASSWORD_FILE", secret("password", f"{password}\r\nanother line"))
    if url is not None:
        monkeypatch.setenv("PROMPTMILL_REDIS_URL", url)

    found = Settings.load().redis

    assert found == complete.format(quote(password, safe=""))
    assert parse_url(found)["password"] == password
    if not found.startswith("unix:"):  # of a socket kombu reads them when it connects
        broker = Celery(broker=broker_url(found), set_as_current=False).connection()
        assert (broker.password, broker.userid) == (password, parse_url(found).get("username"))


def test_a_url_file_holds_all_of_it_or_all_but_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_REDIS_URL_FILE", secret("url", " rediss://u:p@h:1/2\n"))
    assert Settings.load().redis == "rediss://u:p@h:1/2"
    secret("url", "rediss://u@h:1/2")
    monkeypatch.setenv("PROMPTMILL_REDIS_PASSWORD_FILE", secret("password", "p@\n"))
    assert Settings.load().redis == "rediss://u:p%40@h:1/2"


def test_a_flag_wins_over_the_files_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_REDIS_URL_FILE", secret("url", "redis://from-file"))
    assert Settings.load(redis_url="redis://from-flag").redis == "redis://from-flag"
    monkeypatch.setenv("PROMPTMILL_REDIS_PASSWORD_FILE", secret("password", "word"))
    assert Settings.load(redis_url="redis://u@from-flag").redis == "redis://u:word@from-flag"
    assert Settings.load(redis_url="redis://u:own@from-flag").redis == "redis://u:own@from-flag"


@pytest.mark.parametrize("named", [None, "redis://u:own@from-flag", "redis://u@from-flag"])
@pytest.mark.parametrize("kind", ["URL_FILE", "PASSWORD_FILE", "URL"])
def test_a_process_that_is_started_finds_the_same_redis_and_the_same_files(
    monkeypatch: pytest.MonkeyPatch, kind: str, named: str | None
) -> None:
    """The workers of a run."""
    value = {"URL_FILE": secret("url", "redis://u:p@h"), "PASSWORD_FILE": secret("word", "p"), "URL": "redis://u:p@h"}
    monkeypatch.setenv(f"PROMPTMILL_REDIS_{kind}", value[kind])
    found = Settings.load(redis_url=named).redis
    for name, content in redis_variables(found).items():
        monkeypatch.setenv(name, content)
    Path(".env").write_text("PROMPTMILL_REDIS_PASSWORD_FILE=/nowhere\n", encoding="utf-8")
    assert Settings.load().redis == found
    if isinstance(found, UrlFromFiles):
        again = Settings.load().redis
        assert isinstance(again, UrlFromFiles)
        assert again.files == found.files


def test_variables_that_are_empty_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("PROMPTMILL_REDIS_PASSWORD_FILE=/nowhere\n", encoding="utf-8")
    for name in ("REDIS_URL", "REDIS_URL_FILE", "REDIS_PASSWORD_FILE", "ALLOWED_MODELS", "STORE_ID"):
        monkeypatch.setenv(f"PROMPTMILL_{name}", "")
    for name in ("STORE", "LEASE_S", "LOG_FORMAT", "MIN_FREE_MB"):
        monkeypatch.setenv(f"PROMPTMILL_{name}", "")
    settings = Settings.load()
    assert (settings.redis_url, settings.allowed_models, settings.store_id) == (None, None, None)
    assert settings.redis == DEFAULT_REDIS_URL
    assert (settings.store, settings.lease_s, settings.log_format) == ("./promptmill-data", 60, "text")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"REDIS_PASSWORD_FILE": "nowhere"}, "PROMPTMILL_REDIS_PASSWORD_FILE: nowhere cannot be read: No such file"),
        ({"REDIS_PASSWORD_FILE": "~nobody-of-that-name/x"}, "cannot be read"),
        ({"REDIS_URL_FILE": "."}, "PROMPTMILL_REDIS_URL_FILE: . cannot be read: Is a directory"),
        ({"REDIS_PASSWORD_FILE": "empty"}, "the first line of empty is empty"),
        ({"REDIS_PASSWORD_FILE": "second-line"}, "the first line of second-line is empty"),
        ({"REDIS_URL_FILE": "binary"}, "the first line of binary is not UTF-8"),
        ({"REDIS_PASSWORD_FILE": "marked"}, "marked begins with a byte order mark: save it as UTF-8 without one"),
        ({"REDIS_URL_FILE": "url", "REDIS_URL": "redis://h"}, "are both set: unset one of them"),
        ({"REDIS_PASSWORD_FILE": "password", "REDIS_URL": "redis://u:own-secret@h"}, "take it out of the URL"),
        ({"REDIS_PASSWORD_FILE": "password", "REDIS_URL": "redis://h?password=own-secret"}, "take it out of the URL"),
        ({"REDIS_PASSWORD_FILE": "password", "REDIS_URL_FILE": "url"}, "take it out of the URL"),
    ],
)
def test_secrets_that_cannot_be_had_are_said_in_a_sentence_without_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    secret("empty", "\n")
    secret("second-line", "\nfile-secret\n")
    secret("binary", b"file-secret\xff")
    secret("marked", "\ufefffile-secret")
    secret("password", "file-secret")
    secret("url", "redis://u:own-secret@h")
    for name, value in variables.items():
        monkeypatch.setenv(f"PROMPTMILL_{name}", value)
    with pytest.raises(InputError, match=re.escape(said)) as raised:
        Settings.load()
    shown = "".join(traceback.format_exception(raised.value))
    assert not re.search("own-secret|file-secret", shown)


def test_settings_do_not_show_what_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTMILL_REDIS_PASSWORD_FILE", secret("password", "file-secret"))
    settings = Settings.load()
    assert "file-secret" in settings.redis
    assert "file-secret" not in f"{settings!r} {settings}"
