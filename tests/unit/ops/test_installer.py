"""Putting pip into an environment that was made without it."""

from __future__ import annotations

import http.server
import importlib.util
import socket
import threading
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


def test_an_index_that_nobody_answers_for_is_not_waited_for(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installer, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/torch/"
        assert installer.main(["answers", url]) == 1
    assert installer.main(["answers", url]) == 1  # closed by now
    assert capsys.readouterr().err.count(f"installer: {url}: ") == 2


def test_an_index_that_answers_is_left_to_pip_whatever_it_answers(installer: ModuleType) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # It refuses every request: 501.
        assert installer.main(["answers", f"http://127.0.0.1:{server.server_port}/torch/"]) == 0
        server.shutdown()
