"""What a run leaves: one JSON line for each thing that was found, written at once, so that a run that is cut short
loses nothing and several runs can be reported together. No torch."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench_errors import BenchError

from engine_bench.models import model_shape
from engine_bench.workloads import Workload, workload

#: Decide how fast a contender is.
_PACKAGES = ("torch", "transformers", "ctranslate2", "numpy")


@dataclass(frozen=True)
class Work:
    """What was to be done; measurements are only comparable if all of it is equal."""

    model: str
    layers: int
    workload: str
    requests: int
    seed: int
    threads: int
    #: Of the lengths, so that a file from before they were changed is noticed.
    digest: str

    @classmethod
    def of(cls, model: str, layers: int | None, made: Workload, threads: int) -> Work:
        shape = model_shape(model, layers)
        return cls(model, shape.layers, made.name, len(made.rows), made.seed, threads, made.digest)

    def again(self) -> Workload:
        """The workload. Raises BenchError if this version makes another one."""
        made = workload(self.workload, self.requests, self.seed)
        if made.digest != self.digest:
            raise BenchError(f"{self.workload} has other lengths in this version: measure it again")
        return made


@dataclass(frozen=True)
class Measurement:
    work: Work
    contender: str
    #: Rows at once.
    rows: int
    round: int
    seconds: float
    output_tokens: int
    stats: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds


@dataclass(frozen=True)
class Failure:
    """A contender that raised, or generated other lengths than it was asked for."""

    work: Work
    contender: str
    rows: int
    message: str


@dataclass(frozen=True)
class Memory:
    """Of a process that does one pass of one contender; MB are 10^6 bytes."""

    work: Work
    contender: str
    rows: int
    peak_mb: float
    #: With everything imported and no model loaded.
    idle_mb: float


@dataclass(frozen=True)
class Absence:
    """A contender that could not take part."""

    contender: str
    reason: str


@dataclass(frozen=True)
class MachineRates:
    """What ``rates.measure`` found for a model's shapes."""

    model: str
    layers: int
    threads: int
    #: Of each shape of weight: inputs, outputs, library, rows, flops (FLOP/s).
    products: list[dict[str, Any]]
    #: Bytes/s.
    bandwidth: float
    libraries: list[str]


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    versions: dict[str, str]

    @classmethod
    def here(cls) -> Machine:
        return cls(_cpu(), os.cpu_count() or 1, {name: found for name in _PACKAGES if (found := _version(name))})


Record = Measurement | Failure | Memory | Absence | MachineRates | Machine

_KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Measurement, Failure, Memory, Absence, MachineRates, Machine)
}


def to_line(record: Record) -> str:
    return json.dumps({"kind": type(record).__name__, **asdict(record)})


def from_line(line: str) -> Record:
    fields = json.loads(line)
    kind = _KINDS[fields.pop("kind")]
    if "work" in fields:
        fields["work"] = Work(**fields["work"])
    return kind(**fields)


def read(paths: Iterable[Path]) -> list[Record]:
    """All records of some files. Raises BenchError for what is not such a file."""
    records: list[Record] = []
    for path in paths:
        try:
            lines: Sequence[str] = path.read_text().splitlines()
        except OSError as error:
            raise BenchError(f"{path} cannot be read: {error.strerror}") from error
        for number, line in enumerate(lines, start=1):
            try:
                records.append(from_line(line))
            except (ValueError, KeyError, TypeError) as error:
                raise BenchError(f"{path}:{number} is no line of this benchmark ({error!r})") from error
    return records


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
