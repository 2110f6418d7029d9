"""Settings: the environment, the local run's server, and values that are refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.errors import InputError
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
        ("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml"),
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
