"""The scripts of ops/docker, run without Docker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from compose_work import ROOT


def test_init_makes_each_password_once_in_a_folder_for_nobody_else(compose: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "secrets"

    def init() -> dict[str, str]:
        environment = {**os.environ, "SECRETS_DIR": str(folder)}
        subprocess.run([ROOT / "ops/docker/init"], env=environment, check=True, capture_output=True)
        return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}

    made = init()
    assert set(made) == set(compose["secrets"])
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{48}\n", password) for password in made.values())
    assert folder.stat().st_mode & 0o777 == 0o700
    # In the container another user reads them.
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    (folder / "redis_worker").unlink()
    again = init()
    assert {name for name in made if made[name] != again[name]} == {"redis_worker"}


@pytest.mark.parametrize("spoil", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_a_secret_that_is_no_file_with_something_in_it_is_told(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """Docker makes a folder where a file is missing that it was to mount."""
    spoil(tmp_path / "redis_worker")
    environment = {**os.environ, "SECRETS_DIR": str(tmp_path)}
    done = subprocess.run([ROOT / "ops/docker/init"], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/redis_worker is empty or no file")


@pytest.mark.parametrize(("path", "status"), [("/readyz", 0), ("/stands-still", 1)])
def test_the_health_check_says_what_the_process_answers(path: str, status: int) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: pytest shows what matters."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-IS", ROOT / "ops/docker/health", str(server.server_port), path]
        assert subprocess.run(command, check=False).returncode == status
        server.shutdown()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("arguments", [[], ["port"], ["1", "/readyz", "more"]])
def test_a_health_check_that_is_asked_amiss_says_how_to_ask(arguments: list[str]) -> None:
    command = [sys.executable, "-IS", ROOT / "ops/docker/health", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: health PORT [PATH]\n")


@pytest.mark.parametrize(
    ("docker", "status", "text"),
    [
        (None, 2, "there is no docker command"),
        ('[ "$1" != compose ]', 2, "no compose plugin"),
        ('[ "$1" != info ]', 3, "daemon does not answer"),
    ],
)
def test_the_demo_says_in_one_sentence_what_docker_lacks(
    docker: str | None, status: int, text: str, tmp_path: Path
) -> None:
    for name in ("sh", "dirname", "sed"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    if docker is not None:
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n{docker}\n", encoding="utf-8")
        program.chmod(0o755)
    run = subprocess.run(
        [ROOT / "ops/docker/demo"], env={"PATH": str(tmp_path)}, check=False, capture_output=True, text=True
    )
    assert run.returncode == status
    assert text in run.stderr
    assert len(run.stderr.splitlines()) == 1
