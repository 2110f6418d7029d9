"""What a local run finds out about its model before it accepts a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from producer.local import check_model


@pytest.mark.parametrize("source", ["./nope", "/nope/model", "~/nope-model", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        check_model(f"copy={source}")


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        check_model(f"copy={tmp_path}")


@pytest.mark.parametrize("model", ["gpt2", "small=owner/name"])
def test_a_hub_id_is_for_the_worker_to_try(model: str) -> None:
    check_model(model)


def test_a_folder_that_looks_like_a_model_passes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    check_model(str(tmp_path))
