"""The distribution as its users get it: built from a copy of the tree, installed in an environment of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from jobs import __version__
from tests.outcome import Outcome
from tests.patience import PATIENCE_S
from tests.redis_server import Server

ROOT = Path(__file__).parents[2]
PACKAGES = ("jobs", "producer", "worker")
EXTRA = ("torch", "transformers", "safetensors")
#: Not of the distribution: what lies about in a checkout.
_LITTER = shutil.ignore_patterns(".*", "__pycache__", "dist", "build", "*.egg-info", "promptmill-*")


def uv(*arguments: str | Path) -> None:
    """uv, with the package index that pip is set to."""
    command = [sys.executable, ROOT / "ops/installer.py", "uv", *arguments]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("release") / "tree", ignore=_LITTER))


@pytest.fixture(scope="module")
def built(tree: Path) -> Path:
    """The folder of the sdist, and of the wheel that was built from it."""
    uv("build", "--out-dir", tree.parent / "dist", tree)
    return tree.parent / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"promptmill-{__version__}-py3-none-any.whl"


class Installed:
    """An environment of its own, and a folder far from any checkout to work in."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.python = folder / "venv/bin/python"
        self.folder = folder / "home"
        self.folder.mkdir(parents=True)
        (self.folder / "prompts.jsonl").write_text('{"prompt": "a lamp"}\n{"prompt": "a bag"}\n')
        uv("venv", "--python", sys.executable, folder / "venv")
        self._environment = {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}", "HOME": str(self.folder), "OMP_NUM_THREADS": "1",
            "PROMPTMILL_REDIS_URL": redis_url,
        }  # fmt: skip

    def install(self, what: str | Path) -> None:
        uv("pip", "install", "--python", self.python, "-c", ROOT / "requirements.lock", what)

    def run(self, *command: str, timeout_s: float = PATIENCE_S, **env: str) -> Outcome:
        found = subprocess.run(
            command, cwd=self.folder, env={**self._environment, **env}, capture_output=True, text=True, check=False,
            timeout=timeout_s,
        )  # fmt: skip
        return Outcome(found.returncode, found.stdout, found.stderr)


@pytest.fixture(scope="module")
def producer(wheel: Path, tmp_path_factory: pytest.TempPathFactory, server: Server) -> Installed:
    """What ``pip install promptmill`` makes."""
    found = Installed(tmp_path_factory.mktemp("producer"), server.url)
    found.install(wheel)
    return found


def files_of(folder: Path) -> set[str]:
    paths = (path for name in PACKAGES for path in (folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in paths}


def test_the_wheel_holds_the_three_packages_whole_and_nothing_else(tree: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    about = f"promptmill-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(about)} == files_of(tree)
    assert {f"{name}/py.typed" for name in PACKAGES} <= names
    assert "jobs/ledger/claim.lua" in names
    assert f"{about}licenses/LICENSE" in names


def test_its_metadata_is_that_of_the_project(wheel: Path) -> None:
    content = zipfile.ZipFile(wheel).read(f"promptmill-{__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(content)
    assert (metadata["Name"], metadata["Version"]) == ("promptmill", __version__)
    assert metadata["Requires-Python"] == ">=3.11"
    wanted = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    base = {each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})}
    worker = {each.name for each in wanted if each.marker and "worker" in str(each.marker)}
    assert worker >= set(EXTRA)
    assert not worker & base
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_sdist_gives_the_same_wheel_as_the_tree_and_has_no_tests(tree: Path, built: Path, wheel: Path) -> None:
    for path in tree.rglob("*"):  # the time of a file is none of its content
        os.utime(path, (1_700_000_000, 1_700_000_000))
    uv("build", "--wheel", "--out-dir", tree.parent / "direct", tree)
    assert (tree.parent / "direct" / wheel.name).read_bytes() == wheel.read_bytes()
    with tarfile.open(built / f"promptmill-{__version__}.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert files_of(tree) <= names
    assert {"CHANGELOG.md", "README.md", "LICENSE", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "ops/"))]


def test_the_base_install_is_a_producer_without_torch(producer: Installed) -> None:
    look = f"import importlib.util as u; print([n for n in {EXTRA} if u.find_spec(n)], u.find_spec('jobs').origin)"
    found, _, origin = producer.run("python", "-c", look).ok().out.partition(" ")
    assert found == "[]"
    assert str(producer.python.parent.parent) in origin
    assert producer.run("promptmill", "--version").ok().out == f"promptmill {__version__}\n"
    assert producer.run("promptmill-worker", "--version").ok().out == f"promptmill-worker {__version__}\n"
    assert producer.run("promptmill", "check", "prompts.jsonl", "--json").ok().json["rows"] == 2
    submitted = producer.run("promptmill", "submit", "prompts.jsonl", "--model", "nobody", "--json").ok().json
    assert producer.run("promptmill", "status", submitted["id"], "--json").ok().json["status"] == "in_progress"
    assert f"promptmill {__version__}" in producer.run("promptmill", "doctor").ok().out


@pytest.mark.parametrize(
    "command",
    [
        "promptmill run prompts.jsonl --model gpt2",
        "promptmill-worker start --model gpt2",
        "promptmill-worker doctor --model gpt2",
    ],
)
def test_what_needs_an_engine_says_in_one_line_what_to_install(producer: Installed, command: str) -> None:
    done = producer.run(*command.split())
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(r"error: [^\n]*: pip install 'promptmill\[worker\]'\n", done.err)


def needs(requirements: list[str], extra: str, seen: dict[str, set[str]]) -> dict[str, set[str]]:
    """The packages that ``requirements`` ask for with this extra, and those that these ask for, as they are here."""
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = re.sub(r"[-_.]+", "-", wanted.name.lower())
        for own in wanted.extras or {""}:
            if own not in seen.setdefault(name, set()):
                seen[name].add(own)
                needs(distribution(name).requires or [], own, seen)
    return seen


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """What ``pip install 'promptmill[worker]'`` makes, but for the copying.

    Of each package that the wheel asks for with that extra, and of those that these ask for, the files are links into
    the environment of the tests.
    """
    found = Installed(tmp_path_factory.mktemp("whole"), "")
    uv("pip", "install", "--python", found.python, "--no-deps", wheel)
    content = zipfile.ZipFile(wheel).read(f"promptmill-{__version__}.dist-info/METADATA").decode()
    wanted = Parser().parsestr(content).get_all("Requires-Dist", [])
    site = next(found.python.parent.parent.glob("lib/python*/site-packages"))
    here = Path(sysconfig.get_path("purelib"))
    for name in needs(wanted, "worker", {}):
        tops = {Path(file).parts[0] for file in distribution(name).files or []} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(here / top)
    return found


def test_the_worker_extra_is_all_that_a_local_run_needs(whole: Installed, tiny: Path) -> None:
    foreign = "import importlib.util as u; print([n for n in ('pytest', 'duckdb', 'polars') if u.find_spec(n)])"
    assert whole.run("python", "-c", foreign).ok().out == "[]\n", "nothing of the tests' own environment is there"
    flags = ("--model", f"small={tiny}", "--max-tokens", "4", "--device", "cpu", "--json")
    done = whole.run("env", "-u", "PROMPTMILL_REDIS_URL", "promptmill", "run", "prompts.jsonl", *flags).ok()
    assert done.json["rows"]["completed"] == 2
