"""How much memory is free, by what the machine and the container say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worker.engine import memory
from worker.engine.memory import CPU_SHARE, free_bytes, kv_positions

CPU = torch.device("cpu")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def limit(cgroup: Path, most: str, current: int) -> None:
    (cgroup / "memory.max").write_text(f"{most}\n")
    (cgroup / "memory.current").write_text(f"{current}\n")


def test_without_a_limit_it_is_what_the_machine_has(cgroup: Path) -> None:
    without = free_bytes(CPU)
    limit(cgroup, "max", 123)

    assert without > 1 << 20
    assert free_bytes(CPU) == pytest.approx(without, rel=0.2)


def test_a_containers_limit_counts_less_what_it_has_taken(cgroup: Path) -> None:
    limit(cgroup, str(50_000_000), 20_000_000)

    assert free_bytes(CPU) == 30_000_000


def test_files_that_a_container_has_read_count_as_free(cgroup: Path) -> None:
    limit(cgroup, str(50_000_000), 48_000_000)
    (cgroup / "memory.stat").write_text("anon 10000000\ninactive_file 30000000\nactive_file 8000000\n")

    assert free_bytes(CPU) == 32_000_000


def test_a_limit_beyond_the_machine_changes_nothing(cgroup: Path) -> None:
    without = free_bytes(CPU)
    limit(cgroup, str(1 << 60), 0)

    assert free_bytes(CPU) == pytest.approx(without, rel=0.2)


@pytest.mark.parametrize("content", ["", "lots", "9223372036854771712 of it"])
def test_a_limit_that_cannot_be_read_is_none(cgroup: Path, content: str) -> None:
    (cgroup / "memory.max").write_text(content)

    assert free_bytes(CPU) > 1 << 20


def test_keys_and_values_get_a_share_of_what_is_free(cgroup: Path) -> None:
    limit(cgroup, str(20_000_000), 10_000_000)

    assert kv_positions(CPU, 1000, most=1_000_000) == int(10_000_000 * CPU_SHARE) // 1000
    assert kv_positions(CPU, 1000, most=777) == 777


@pytest.mark.parametrize("current", [10_000_000, 30_000_000])
def test_where_nothing_is_free_there_is_room_for_one_token(cgroup: Path, current: int) -> None:
    limit(cgroup, str(10_000_000), current)

    assert kv_positions(CPU, 1000, most=1000) == 1
