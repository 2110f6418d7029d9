"""Which devices a machine's worker processes are to use: what ``--devices`` says, and which GPUs there are.

No torch: the process that supervises the others stays small, and holds no CUDA context.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.errors import InputError, UnavailableError

#: Seconds for a driver to say which GPUs it has: without persistence mode it wakes them first.
_ASK_S = 60.0

_NUMBER = re.compile(r"(?:cuda:)?(0|[1-9][0-9]{0,3})", re.ASCII)
#: An id as ``nvidia-smi -L`` prints it, or the beginning of one; older drivers name MIG devices MIG-GPU-<id>/1/0.
_ID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]{1,64}")
_LISTED = re.compile(r"^(?:GPU (?P<number>\d+):|\s+MIG ).*\(UUID: (?P<id>[^)]+)\)", re.MULTILINE)
_SHORT = re.compile(r"((?:GPU|MIG)-[0-9A-Fa-f]{8})-")


@dataclass(frozen=True, slots=True)
class Device:
    """What one worker process runs on."""

    #: In logs and lists.
    name: str
    #: For ``--device``.
    flag: str
    #: CUDA_VISIBLE_DEVICES of the process: it sees this device alone, so that nothing of it ends up on another.
    visible: str


def choose(wanted: str, visible: str | None = None) -> list[Device]:
    """The devices that ``wanted`` (the value of ``--devices``) names.

    ``visible`` is CUDA_VISIBLE_DEVICES, if it is set: then there are only those, and numbers count within it, as they
    do for CUDA. Raises InputError; UnavailableError where the GPUs cannot be asked for.
    """
    words = [word.strip() for word in wanted.split(",")]
    allowed = None if visible is None else _visible(visible)
    if words == ["auto"]:
        words = ["cpu"] if not (found := _find() if allowed is None else allowed) else found
    else:
        words = [_resolve(word, allowed) for word in words]
    for word in words:
        if word != "cpu" and words.count(word) > 1:
            raise InputError(
                f"--devices names the GPU {word} twice: one process uses all of a GPU; raise --max-rows instead"
            )
    cpus = words.count("cpu")
    number = iter(range(cpus))
    return [
        Device("cpu" if cpus == 1 else f"cpu:{next(number)}", "cpu", "")
        if word == "cpu"
        else Device(shown("cuda:0", word), "cuda:0", word)
        for word in words
    ]


def shown(device: str, visible: str | None) -> str:
    """What a device of torch is called outside of its process, which may see only some GPUs, by other numbers."""
    kind, _, index = device.partition(":")
    ids = _visible(visible) if visible is not None else []
    if kind != "cuda" or int(index or 0) >= len(ids):
        return device
    name = ids[int(index or 0)]
    short = _SHORT.match(name)
    return f"cuda:{short.group(1) if short else name}"


def _resolve(word: str, allowed: Sequence[str] | None) -> str:
    """One word of ``--devices`` as CUDA_VISIBLE_DEVICES spells it, or ``cpu``. Raises InputError."""
    if word == "cpu":
        return word
    number = _NUMBER.fullmatch(word)
    if number is None and not _ID.fullmatch(word):
        raise InputError(
            f"--devices: {word!r} is no device: give auto, or GPUs by number (0,1) or id (GPU-..., MIG-...), "
            "or cpu for each process on the CPU, with commas between them"
        )
    if allowed is None:
        return number.group(1) if number else word
    if number and int(number.group(1)) < len(allowed):
        return allowed[int(number.group(1))]
    if word not in allowed:
        among = ",".join(allowed) or "none"
        raise InputError(f"--devices: there is no {word} among the GPUs that CUDA_VISIBLE_DEVICES leaves: {among}")
    return word


def _visible(value: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES; as CUDA does, up to the first that is none."""
    ids = []
    for word in value.split(","):
        if not re.fullmatch(r"[0-9]{1,4}", word.strip(), re.ASCII) and not _ID.fullmatch(word.strip()):
            break
        ids.append(word.strip())
    return ids


def _find() -> list[str]:
    """The machine's GPUs: by number, and by id the parts of those that are divided (MIG)."""
    command = shutil.which("nvidia-smi")
    if command is None:
        # None of NVIDIA's, or a container without its tools: torch knows.
        count = _ask([sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]).split()
        return [str(number) for number in range(int(count[-1]))]
    return listed(_ask([command, "-L"]))


def listed(text: str) -> list[str]:
    """The devices of an ``nvidia-smi -L``."""
    found: list[list[str]] = []
    for match in _LISTED.finditer(text):
        if match["number"] is not None:
            found.append([match["number"]])
        elif found:
            found[-1].append(match["id"])
    return [name for gpu in found for name in (gpu[1:] or gpu)]


def _ask(command: Sequence[str]) -> str:
    """What ``command`` prints. Raises UnavailableError: the driver may not be there yet."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"--devices auto: the GPUs cannot be counted: {error}") from error
    if done.returncode and "no devices" not in done.stdout.lower():
        said = (done.stdout + done.stderr).strip().splitlines()
        raise UnavailableError(
            f"--devices auto: the GPUs cannot be counted: {command[0]} ended with status {done.returncode}"
            f"{': ' + said[-1].strip() if said else ''}; name the devices to start without asking"
        )
    return done.stdout
