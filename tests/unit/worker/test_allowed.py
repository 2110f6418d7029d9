"""The operator's list of models: real paths and hub ids, before anything of a model is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.errors import InputError
from worker.allowed import check_allowed
from worker.cli import app


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``models`` with a link that leads out of it; ``elsewhere`` beside it. The current folder is empty."""
    for folder in ("models/good", "models/deep/er", "elsewhere/bad", "here"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models" / "out").symlink_to(tmp_path / "elsewhere" / "bad")
    (tmp_path / "elsewhere" / "in").symlink_to(tmp_path / "models" / "good")
    (tmp_path / "linked").symlink_to(tmp_path / "models")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "models"


def test_without_a_list_everything_is_allowed_as_it_is_written() -> None:
    assert check_allowed("anything/at-all", None) == "anything/at-all"


@pytest.mark.parametrize(
    "source", ["{}/models/good", "{}/models/deep/er", "{}/models/../models/good", "~/models/good", "{}/linked/good",
               "{}/elsewhere/in", "../models/good"],
)  # fmt: skip
@pytest.mark.parametrize("pattern", ["{}/models/*", "{}/linked/*", "~/models/*", "x/*, {}/models/* ,y"])
def test_a_folder_is_allowed_by_where_it_really_is(models: Path, source: str, pattern: str) -> None:
    place = str(models.parent)
    found = check_allowed(source.format(place), pattern.format(place))
    assert Path(found).is_relative_to(models)
    assert found == str(Path(found).resolve())


@pytest.mark.parametrize(
    "source", ["{}/elsewhere/bad", "{}/models/out", "{}/models/../elsewhere/bad", "~/models/out", "good",
               "{}/models/nowhere/../..", "{}/modelsandmore", "owner/models"],
)  # fmt: skip
def test_a_link_or_dots_lead_nowhere_else(models: Path, source: str) -> None:
    place = str(models.parent)
    with pytest.raises(InputError, match="is not allowed here: PROMPTMILL_ALLOWED_MODELS allows ") as raised:
        check_allowed(source.format(place), f"{place}/models/*")
    assert "\n" not in str(raised.value)


def test_one_folder_can_be_named_alone(models: Path) -> None:
    assert check_allowed(str(models / "good"), f"{models.parent}/linked/good") == str(models / "good")
    with pytest.raises(InputError):
        check_allowed(str(models / "deep"), f"{models}/good")


@pytest.mark.parametrize("pattern", ["openai-community/gpt2", "openai-community/*", "*"])
def test_ids_of_the_hub_are_allowed_as_they_are_written(models: Path, pattern: str) -> None:
    assert check_allowed("openai-community/gpt2", pattern) == "openai-community/gpt2"
    if pattern != "*":
        with pytest.raises(InputError, match="other/gpt2 is not allowed"):
            check_allowed("other/gpt2", pattern)


def test_a_folder_is_no_id_of_the_hub_though_it_has_its_name(models: Path) -> None:
    Path("openai-community/gpt2").mkdir(parents=True)
    with pytest.raises(InputError, match=r"openai-community/gpt2 \(which is /.*\) is not allowed"):
        check_allowed("openai-community/gpt2", "openai-community/*")


def test_a_list_of_nothing_is_refused_rather_than_taken_for_none(models: Path) -> None:
    with pytest.raises(InputError, match="holds commas alone"):
        check_allowed(str(models / "good"), " , ")


@pytest.mark.parametrize(
    ("source", "pattern"), [("~nobody-of-that-name/x", "{}/*"), ("{}/good", "~nobody-of-that-name/*")]
)
def test_the_home_of_nobody_is_a_folder_that_is_not_there(models: Path, source: str, pattern: str) -> None:
    with pytest.raises(InputError, match="is not allowed here"):
        check_allowed(source.format(models), pattern.format(models))


@pytest.mark.parametrize("command", ["start", "doctor"])
def test_the_commands_refuse_before_anything_is_opened_or_loaded(models: Path, command: str) -> None:
    place = models.parent
    env = {"PROMPTMILL_ALLOWED_MODELS": f"{models}/*", "PROMPTMILL_STORE": str(place / "store"),
           "PROMPTMILL_REDIS_URL": "redis://127.0.0.1:1/0"}  # fmt: skip
    done = CliRunner().invoke(app, [command, "--model", f"x={place}/elsewhere/bad"], env=env)
    assert isinstance(done.exception, InputError)
    assert done.exception.exit_code == 2
    assert not (place / "store").exists()
