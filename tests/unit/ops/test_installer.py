"""Putting pip into an environment that was made without it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

INSTALLER = Path(__file__).parents[3] / "ops" / "installer.py"


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, on a machine without any setting of pip and without packages of its own."""
    spec = importlib.util.spec_from_file_location("installer", INSTALLER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "pip_setting", lambda name: None)
    monkeypatch.setattr(module, "system_wheel", lambda folder: None)
    return module


def test_without_a_configured_index_pips_own_installer_is_fetched_and_run(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "get-pip.py"
    script.write_text(f"import sys, pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).write_text(sys.argv[1])")
    monkeypatch.setattr(installer, "GET_PIP", script.as_uri())

    assert installer.main(["pip"]) == 0
    assert (tmp_path / "ran").read_text() == "pip"


def test_an_installer_that_cannot_be_fetched_is_one_sentence(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "GET_PIP", (tmp_path / "absent.py").as_uri())

    with pytest.raises(SystemExit, match="cannot fetch pip from file:"):
        installer.main(["pip"])
