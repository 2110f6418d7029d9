"""From records to what is compared: medians, ratios, the share of the floor, tables and the final JSON. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench_errors import BenchError

from engine_bench.contenders import CONTENDERS, OURS
from engine_bench.floor import Floor, Rates, floor
from engine_bench.models import MODELS, model_shape
from engine_bench.records import Failure, MachineRates, Measurement, Memory, Record, Work
from engine_bench.workloads import WORKLOADS

#: Who the engine is compared with, the faster of each group; by workload what it is to reach over them on which
#: models.
RIVALS = {
    "padded generate": ("padded-input-order", "padded-sorted"),
    "generate_batch": ("generate-batch",),
    "CTranslate2 float32": ("ctranslate2", "ctranslate2-static-prompt"),
}
PROMISED = ("gpt2", "llama")
TARGETS = {
    "mixed": {"padded generate": 6.0, "generate_batch": 3.0, "CTranslate2 float32": 1.4},
    "uniform": {"padded generate": 1.6, "generate_batch": 2.0, "CTranslate2 float32": 0.9},
    "shared-prefix": {"padded generate": 8.0, "generate_batch": 3.0, "CTranslate2 float32": 2.5},
}


@dataclass(frozen=True)
class Result:
    """A contender at its best number of rows."""

    contender: str
    rows: int
    #: Tokens/s of each round.
    speeds: tuple[float, ...]
    #: Seconds, the median.
    seconds: float
    stats: dict[str, float]
    memory: Memory | None = None

    @property
    def tokens_per_s(self) -> float:
        return median(self.speeds)


@dataclass(frozen=True)
class Comparison:
    """All that was found about one workload of one model."""

    work: Work
    #: In the order of CONTENDERS.
    results: dict[str, Result]
    failures: list[Failure] = field(default_factory=list)
    floor: Floor | None = None

    @property
    def name(self) -> str:
        return f"{self.work.model}/{self.work.workload}"

    def to_inflight(self, contender: str) -> float | None:
        """The contender's tokens/s over the in-flight engine's; None if that did not run."""
        ours = self.results.get(OURS)
        return self.results[contender].tokens_per_s / ours.tokens_per_s if ours else None

    def over(self, rivals: Iterable[str]) -> float | None:
        """The in-flight engine's tokens/s over those of the fastest of ``rivals``; None if any side did not run."""
        speeds = [self.results[name].tokens_per_s for name in rivals if name in self.results]
        ours = self.results.get(OURS)
        return ours.tokens_per_s / max(speeds) if ours and speeds else None

    def target(self, rivals: str) -> float | None:
        """What ``over`` is to reach; None if nothing was promised. Models of another size promise nothing."""
        shape = MODELS[self.work.model]
        promised = self.work.model in PROMISED and shape.layers == self.work.layers
        return TARGETS.get(self.work.workload, {}).get(rivals) if promised else None

    def share_of_floor(self, contender: str) -> float | None:
        return self.floor.in_phases / self.results[contender].seconds if self.floor else None


def compare(records: Sequence[Record]) -> list[Comparison]:
    """One comparison for each model and workload that was measured. Raises BenchError if it was not one work."""
    found = [record for record in records if isinstance(record, Measurement | Failure)]
    works = {(record.work.model, record.work.workload): record.work for record in found}
    for record in found:
        kept = works[record.work.model, record.work.workload]
        if record.work != kept:
            raise BenchError(f"these files measured different work, so they cannot be compared: {kept}, {record.work}")
    names = [(model, name) for model in MODELS for name in WORKLOADS if (model, name) in works]
    return [_comparison(works[name], records) for name in names]


def final_json(comparisons: Sequence[Comparison]) -> dict[str, dict[str, dict[str, float | None]]]:
    """``{"workload": {"contender": {"tokens_per_s", "ratio_to_inflight"}}}``; of several models ``model/workload``.

    The ratio is that of tokens/s, the contender's over the in-flight engine's; null where that did not run.
    """
    one_model = len({comparison.work.model for comparison in comparisons}) == 1
    return {
        comparison.work.workload if one_model else comparison.name: {
            name: {
                "tokens_per_s": round(result.tokens_per_s, 2),
                "ratio_to_inflight": _rounded(comparison.to_inflight(name)),
            }
            for name, result in comparison.results.items()
        }
        for comparison in comparisons
    }


def rates_of(found: MachineRates) -> Rates:
    return Rates(
        {(product["inputs"], product["outputs"]): product["flops"] for product in found.products}, found.bandwidth
    )


def _comparison(work: Work, records: Sequence[Record]) -> Comparison:
    measurements = [record for record in records if isinstance(record, Measurement) and record.work == work]
    memories = [record for record in records if isinstance(record, Memory) and record.work == work]
    results = {
        name: _result([one for one in measurements if one.contender == name], memories)
        for name in CONTENDERS
        if any(one.contender == name for one in measurements)
    }
    failures = [record for record in records if isinstance(record, Failure) and record.work == work]
    return Comparison(work, results, failures, _floor(work, records))


def _result(measurements: Sequence[Measurement], memories: Sequence[Memory]) -> Result:
    """At the number of rows that was measured most often: that is the one that was fastest in the first pass. Of
    several such, from several runs, the one with the better median."""
    counts = Counter(one.rows for one in measurements)

    def rank(rows: int) -> tuple[int, float]:
        return counts[rows], median(one.tokens_per_s for one in measurements if one.rows == rows)

    rows = max(counts, key=rank)
    at_best = [one for one in measurements if one.rows == rows]
    contender = at_best[0].contender
    return Result(
        contender=contender,
        rows=rows,
        speeds=tuple(one.tokens_per_s for one in at_best),
        seconds=median(one.seconds for one in at_best),
        stats=at_best[-1].stats,
        memory=next((one for one in memories if (one.contender, one.rows) == (contender, rows)), None),
    )


def _floor(work: Work, records: Sequence[Record]) -> Floor | None:
    """By the best rates of all runs: a bound that one of them surpassed would be none."""
    key = (work.model, work.layers, work.threads)
    rates = [
        rates_of(record)
        for record in records
        if isinstance(record, MachineRates) and (record.model, record.layers, record.threads) == key
    ]
    if not rates:
        return None
    best = Rates(
        {one: max(rate.flops[one] for rate in rates) for one in rates[0].flops},
        max(rate.bandwidth for rate in rates),
    )
    return floor(model_shape(work.model, work.layers), work.again(), best)


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)
