"""What ops/bootstrap leaves alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_an_environment_that_is_linked_from_another_checkout_is_not_emptied(tmp_path: Path) -> None:
    other = tmp_path / "other" / ".venv"
    (other / "lib").mkdir(parents=True)
    (other / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (other / ".promptmill-stamp").write_text(f"{other.parent} python3.11 1 2\n")
    here = tmp_path / "here"
    (here / "ops").mkdir(parents=True)
    for name in ("pyproject.toml", "requirements.lock", "ops/bootstrap", "ops/installer.py"):
        shutil.copy(ROOT / name, here / name)
    (here / ".venv").symlink_to(other)

    done = subprocess.run([here / "ops" / "bootstrap"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f"{here}/.venv is a link to an environment of another place" in done.stderr
    assert sorted(path.name for path in other.iterdir()) == [".promptmill-stamp", "lib", "pyvenv.cfg"]
