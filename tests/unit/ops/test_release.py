"""ops/release builds only what is a release: everything committed, tagged, and written up in CHANGELOG.md."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHANGELOG = (
    "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-11-26\n\n### Added\n\n- It.\n\n## [1.1.0] - 2026-10-01\n"
)


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / {"init": "jobs/__init__.py", "changelog": "CHANGELOG.md"}[name]).write_text(content)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "change")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One that could be released as 1.2.0."""
    for folder in ("jobs", "ops"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "ops/release", tmp_path / "ops")
    git(tmp_path, "init", "-q")
    commit(tmp_path, init='__version__ = "1.2.0"\n', changelog=CHANGELOG)
    git(tmp_path, "tag", "-a", "v1.2.0", "-m", "1.2.0")
    return tmp_path


def release(checkout: Path, *flags: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and the lines on stderr before the first thing to do."""
    done = subprocess.run(
        [sys.executable, "ops/release", *flags], cwd=checkout, capture_output=True, text=True, check=False
    )
    said = [line.removeprefix("release: ") for line in done.stderr.splitlines()]
    return done.returncode, done.stdout, [line for line in said if not line.startswith(("would run", "to publish"))]


def test_a_dry_run_of_a_release_says_how_to_publish_it_and_builds_nothing(checkout: Path) -> None:
    code, out, missing = release(checkout, "--dry-run")
    assert (code, missing) == (0, [])
    assert out.splitlines()[0] == "git push origin v1.2.0"
    assert out.splitlines()[1].endswith("uv publish dist/promptmill-1.2.0*")
    assert not (checkout / "dist").exists()


@pytest.mark.parametrize(
    ("changelog", "said"),
    [
        (CHANGELOG.replace("2026-11-26", "unreleased"), "the section [1.2.0] wants its date"),
        (CHANGELOG.replace("1.2.0", "1.1.9"), "has no section [1.2.0]"),
        (CHANGELOG.replace("Unreleased]\n", "Unreleased]\n\n- More.\n"), "under [Unreleased] belongs to [1.2.0]"),
    ],
)
def test_the_changelog_has_the_dated_section_of_the_version(checkout: Path, changelog: str, said: str) -> None:
    commit(checkout, changelog=changelog)
    git(checkout, "tag", "-f", "-a", "v1.2.0", "-m", "1.2.0")
    code, out, missing = release(checkout)
    assert (code, out) == (1, "")
    assert [said in line for line in missing] == [True]


def test_the_tag_is_the_version_and_this_commit(checkout: Path) -> None:
    commit(checkout, init='__version__ = "1.2.0"  \n'.replace("  \n", "\n# later\n"))
    assert release(checkout)[2] == ["the tag v1.2.0 is another commit: raise __version__ in jobs/__init__.py"]
    git(checkout, "tag", "-d", "v1.2.0")
    assert release(checkout)[2] == ["there is no tag v1.2.0: git tag -a v1.2.0 -m 'promptmill 1.2.0'"]


def test_a_checkout_with_changes_is_no_release(checkout: Path) -> None:
    (checkout / "jobs/new.py").write_text("x = 1\n")
    assert release(checkout)[2] == ["1 files are changed or unknown to git: commit or remove them"]
