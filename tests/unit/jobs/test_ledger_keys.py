"""The names of Redis keys: dashboards, ACLs and running fleets hold them, so they are written out here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import jobs.ledger
from jobs.ledger import keys

SCRIPTS = sorted(Path(jobs.ledger.__file__).parent.glob("*.lua"))


@pytest.mark.parametrize(
    ("name", "parts", "literal"),
    [
        ("epoch", (), "promptmill:s1:epoch"),
        ("run_id", (), "promptmill:s1:run_id"),
        ("live", (), "promptmill:s1:live"),
        ("ended", (), "promptmill:s1:ended"),
        ("leases", (), "promptmill:s1:leases"),
        ("deadlines", (), "promptmill:s1:deadlines"),
        ("models", (), "promptmill:s1:models"),
        ("sweeping", (), "promptmill:s1:sweeping"),
        ("recovering", (), "promptmill:s1:recovering"),
        ("workers", (), "promptmill:s1:workers"),
        ("worker", ("w1",), "promptmill:s1:worker:w1"),
        ("unpinned", ("2", "gpt2"), "promptmill:s1:unpinned:2:gpt2"),
        ("pinned", ("2", "f00d", "gpt2"), "promptmill:s1:pinned:2:f00d:gpt2"),
        ("vtime", ("gpt2",), "promptmill:s1:vtime:gpt2"),
        ("due", ("2", "gpt2"), "promptmill:s1:due:2:gpt2"),
        ("shown", ("gpt2",), "promptmill:s1:shown:gpt2"),
        ("job", ("j",), "promptmill:s1:job:j"),
        ("job_returned", ("j",), "promptmill:s1:job:j:returned"),
        ("job_done", ("j",), "promptmill:s1:job:j:done"),
        ("job_leases", ("j",), "promptmill:s1:job:j:leases"),
        ("job_attempts", ("j",), "promptmill:s1:job:j:attempts"),
        ("job_errors", ("j",), "promptmill:s1:job:j:errors"),
        ("job_suspects", ("j",), "promptmill:s1:job:j:suspects"),
    ],
)
def test_each_key_has_its_literal_name(name: str, parts: tuple[str, ...], literal: str) -> None:
    assert keys.key("s1", name, *parts) == literal


def test_the_list_above_is_complete() -> None:
    cases = test_each_key_has_its_literal_name.pytestmark[0].args[1]
    assert {case[0] for case in cases} == set(keys.TEMPLATES)


def test_the_stores_share_one_key() -> None:
    assert keys.STORES == "promptmill:stores"


def test_layouts_share_one_key_of_a_store_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (keys.LAYOUT, keys.layout("s1")) == (1, "promptmill:s1:layout")
    monkeypatch.setattr(keys, "LAYOUT", 2)
    assert keys.layout("s1") == "promptmill:s1:layout"
    assert keys.key("s1", "epoch") == "promptmill:s1:layout-2:epoch"


def test_lua_gets_the_same_names() -> None:
    table = keys.lua_table()
    assert table.startswith("local TEMPLATES={epoch='epoch',")
    assert "pinned='pinned:%s:%s:%s'" in table
    assert table.endswith("local READS={2}")
    assert table.count("='") == len(keys.TEMPLATES)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_use_only_keys_of_the_table_and_say_which_they_touch(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    assert set(re.findall(r"\bkey\('(\w+)'", content)) <= set(keys.TEMPLATES)
    lines = content.splitlines()
    if path.stem != "common":
        assert lines[0] in ("#!lua", "#!lua flags=allow-oom", "#!lua flags=no-writes")
        assert lines[1].startswith(f"-- {path.stem}(")


def test_what_ends_work_runs_without_memory_and_what_begins_it_does_not() -> None:
    flags = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in SCRIPTS}
    refused = {name for name, line in flags.items() if line == "#!lua"}
    assert refused == {"accept", "claim"}
