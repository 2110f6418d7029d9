"""What --devices names, and what the processes of a machine are given."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.errors import InputError, UnavailableError
from worker.cli import app
from worker.devices import Device, choose, listed, shown
from worker.supervisor.plan import ChildPlan, Plan, plan_children

A100 = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-f98e5e0d-0eb5-5d0c-a0ae-1b0a8a9c4b9e)
  MIG 3g.20gb     Device  1: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-8932f937-d72c-4106-c12f-20bd9faed9f6)
"""
MIG = "MIG-f98e5e0d-0eb5-5d0c-a0ae-1b0a8a9c4b9e"

numbers = st.integers(0, 9999).map(str)
ids = st.builds("{}-{:08x}-abcd".format, st.sampled_from(["GPU", "MIG", "MIG-GPU"]), st.integers(0, 2**32 - 1))
gpus = st.lists(numbers | ids, unique=True, min_size=1, max_size=8)


def names(wanted: str, visible: str | None = None) -> list[str]:
    return [device.name for device in choose(wanted, visible)]


def test_gpus_have_a_process_each_that_sees_nothing_else() -> None:
    assert choose("0,2") == [Device("cuda:0", "cuda:0", "0"), Device("cuda:2", "cuda:0", "2")]


def test_processes_on_the_cpu_are_numbered_where_there_are_several() -> None:
    assert names("cpu") == ["cpu"]
    assert names("cpu, cpu") == ["cpu:0", "cpu:1"]
    assert names("3,cpu") == ["cuda:3", "cpu"]


def test_an_id_is_shown_short_and_handed_on_whole() -> None:
    (device,) = choose(MIG)
    assert (device.name, device.flag, device.visible) == ("cuda:MIG-f98e5e0d", "cuda:0", MIG)


@given(gpus)
def test_whatever_is_named_is_what_each_process_sees(wanted: list[str]) -> None:
    assert [device.visible for device in choose(",".join(wanted))] == wanted


@given(gpus, st.data())
def test_numbers_count_within_what_is_visible_and_ids_have_to_be_there(visible: list[str], data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.sampled_from(range(len(visible))), unique=True, min_size=1))
    there = [visible[number] for number in picked]
    assert [device.visible for device in choose(",".join(map(str, picked)), ",".join(visible))] == there
    assert [device.visible for device in choose("auto", ",".join(visible))] == visible
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES leaves"):
        choose("GPU-00000000-ffff-none", ",".join(visible))


@given(st.text(alphabet=" ,:-0123GPUMIGcpudaxX/٣²", max_size=20))
def test_a_list_names_a_device_a_word_or_is_refused(wanted: str) -> None:
    with contextlib.suppress(InputError):
        assert len(choose(wanted)) == wanted.count(",") + 1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("", "'' is no device: give auto, or GPUs by number"),
        ("0,", "'' is no device"),
        ("auto,cpu", "'auto' is no device"),
        ("gpu0", "'gpu0' is no device"),
        ("-1", "'-1' is no device"),
        ("0,1,0", "names the GPU 0 twice"),
        ("1,cuda:1", "names the GPU 1 twice"),
    ],
)
def test_what_is_no_list_of_devices_is_refused(wanted: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose(wanted)


def test_a_gpu_that_is_not_visible_is_refused() -> None:
    with pytest.raises(InputError, match="there is no 2 among the GPUs that CUDA_VISIBLE_DEVICES leaves: 4,5"):
        choose("2", "4,5")
    with pytest.raises(InputError, match="leaves: none"):
        choose("0", "-1")


@pytest.mark.parametrize(("visible", "found"), [("", ["cpu"]), ("NoDevFiles", ["cpu"]), ("3,-1,4", ["cuda:3"])])
def test_auto_reads_the_visible_gpus_as_cuda_does(visible: str, found: list[str]) -> None:
    assert names("auto", visible) == found


def test_the_parts_of_a_divided_gpu_are_devices_in_its_stead() -> None:
    assert listed(A100) == [MIG, "MIG-c7384736-a75d-5afc-978f-d2f1294409fd", "1"]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, for a test to write."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "nvidia-smi"


def write(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_auto_takes_all_gpus_that_nvidia_smi_lists(nvidia_smi: Path) -> None:
    write(nvidia_smi, f'test "$1" = -L && cat <<EOF\n{A100}EOF')
    assert names("auto") == ["cuda:MIG-f98e5e0d", "cuda:MIG-c7384736", "cuda:1"]


def test_auto_without_gpus_is_one_process_on_the_cpu(nvidia_smi: Path) -> None:
    write(nvidia_smi, "echo 'No devices were found'; exit 6")
    assert names("auto") == ["cpu"]


def test_a_driver_that_does_not_answer_is_told_and_nothing_is_served_on_the_cpu_instead(nvidia_smi: Path) -> None:
    write(nvidia_smi, "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9")
    with pytest.raises(UnavailableError, match=r"ended with status 9: NVIDIA-SMI has failed .*; name the devices"):
        choose("auto")


@pytest.mark.parametrize(
    ("device", "visible", "name"),
    [
        ("cpu", "3", "cpu"),
        ("cuda:0", None, "cuda:0"),
        ("cuda", "3", "cuda:3"),
        ("cuda:1", "3,7", "cuda:7"),
        ("cuda:1", "3", "cuda:1"),
        ("cuda:0", "GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f", "cuda:GPU-5c89852c"),
        ("mps", "", "mps"),
    ],
)
def test_a_worker_is_listed_under_the_gpu_that_it_really_has(device: str, visible: str | None, name: str) -> None:
    assert shown(device, visible) == name


def planned(wanted: str, environment: dict[str, str], **flags: int | None) -> list[ChildPlan]:
    options = {"cores": 8, "threads": None, "metrics_port": None, **flags}
    return plan_children(choose(wanted), environment, **options)  # type: ignore[arg-type]


def test_processes_share_the_cores() -> None:
    one, two = planned("cpu,cpu", {})
    assert one.flags == two.flags == ["--device", "cpu", "--threads", "4"]
    assert one.environment["OMP_NUM_THREADS"] == "4"
    assert [child.flags[-1] for child in planned("cpu,cpu,cpu", {}, cores=2)] == ["1", "1", "1"]


def test_threads_that_were_given_are_left_as_they_are() -> None:
    assert all(child.flags[-2:] == ["--threads", "6"] for child in planned("cpu,cpu", {}, threads=6))
    (one, _) = planned("cpu,cpu", {"OMP_NUM_THREADS": "3"})
    assert "--threads" not in one.flags
    assert "OMP_NUM_THREADS" not in one.environment


def test_each_process_has_a_metrics_port_of_its_own() -> None:
    ports = [child.flags[-1] for child in planned("0,1,2", {}, metrics_port=9465)]
    assert ports == ["9465", "9466", "9467"]
    with pytest.raises(InputError, match="the last port would be too high"):
        planned("0,1,2", {}, metrics_port=65534)


def test_numbers_are_those_of_nvidia_smi_unless_somebody_has_chosen_already() -> None:
    assert planned("1", {})[0].environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert planned("1", {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})[0].environment["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    assert "CUDA_DEVICE_ORDER" not in planned("1", {"CUDA_VISIBLE_DEVICES": "0,1"})[0].environment


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--devices", "0", "--device", "auto"], "--device and --devices exclude each other"),
        (["--devices", "gpu"], "'gpu' is no device"),
        (["--devices", "cpu,cpu", "--metrics-port", "65535"], "the last port would be too high"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_any_process_is_started(flags: list[str], said: str) -> None:
    refused = CliRunner().invoke(app, ["start", "--model", "copy=./my-model", *flags])
    assert isinstance(refused.exception, InputError)
    assert said in str(refused.exception)


def test_a_plan_survives_being_handed_over() -> None:
    plan = Plan([sys.executable, "-m", "worker"], planned("0,cpu", {}), grace_s=30.0, log_format="json")
    assert Plan.from_json(plan.to_json()) == plan
