"""What the benchmark of the engine makes of what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_errors import BenchError
from engine_bench.contenders import OURS
from engine_bench.models import MODELS
from engine_bench.records import Absence, MachineRates, Measurement, Memory, Work, from_line, to_line
from engine_bench.report import compare, final_json
from engine_bench.tables import report
from engine_bench.workloads import workload


def _measured(contender: str, rows: int, seconds: float, *, model: str = "gpt2", name: str = "mixed") -> Measurement:
    made = workload(name, 8, seed=0)
    return Measurement(Work.of(model, None, made, threads=2), contender, rows, 0, seconds, made.output_tokens)


class TestTheReport:
    def test_the_median_at_the_size_that_was_measured_most_counts(self) -> None:
        records = [_measured(OURS, 8, 1.0), *(_measured(OURS, 32, seconds) for seconds in (2.0, 9.0, 4.0))]
        (comparison,) = compare(records)
        result = comparison.results[OURS]
        assert (result.rows, result.seconds) == (32, 4.0)
        assert result.tokens_per_s == workload("mixed", 8, seed=0).output_tokens / 4.0

    def test_ratios_are_of_tokens_per_second_to_the_inflight_engines(self) -> None:
        records = [_measured(OURS, 32, 2.0), _measured("ctranslate2", 64, 4.0), _measured("padded-sorted", 8, 12.0)]
        output = final_json(compare(records))
        ratios = {name: found["ratio_to_inflight"] for name, found in output["mixed"].items()}
        assert ratios == {"padded-sorted": 0.1667, "ctranslate2": 0.5, OURS: 1.0}

    def test_over_a_group_means_over_its_fastest(self) -> None:
        records = [_measured(OURS, 32, 2.0), _measured("padded-input-order", 8, 30.0)]
        records.append(_measured("padded-sorted", 8, 13.0))
        assert "6.50x of 6x (reached)" in report(records, compare(records))

    def test_without_the_inflight_engine_there_is_no_ratio(self) -> None:
        output = final_json(compare([_measured("sequential", 1, 4.0)]))
        assert output["mixed"]["sequential"]["ratio_to_inflight"] is None

    def test_several_models_are_named_beside_their_workloads(self) -> None:
        records = [_measured(OURS, 8, 1.0, model="llama"), _measured(OURS, 8, 1.0, model="gpt2", name="uniform")]
        assert [*final_json(compare(records))] == ["gpt2/uniform", "llama/mixed"]

    def test_runs_of_different_work_are_not_compared(self) -> None:
        one = _measured(OURS, 8, 1.0)
        with pytest.raises(BenchError, match="different work"):
            compare([one, replace(one, work=replace(one.work, threads=4))])

    def test_lengths_that_have_changed_since_are_noticed(self) -> None:
        one = _measured(OURS, 8, 1.0)
        records = [replace(one, work=replace(one.work, digest="another"))]
        with pytest.raises(BenchError, match="other lengths"):
            report(records, compare(records))

    def test_the_share_of_the_floor_is_by_the_best_rates_of_all_runs(self) -> None:
        linears = (*MODELS["gpt2"].layer_linears, MODELS["gpt2"].head)
        runs = [
            MachineRates(
                "gpt2",
                12,
                2,
                [
                    {"inputs": one.inputs, "outputs": one.outputs, "library": "any", "rows": 64, "flops": flops}
                    for one in linears
                ],
                2e10,
                ["any"],
            )
            for flops in (1e11, 2e11)
        ]
        (comparison,) = compare([_measured(OURS, 8, 10.0), *runs])
        (faster,) = compare([_measured(OURS, 8, 10.0), runs[1]])
        assert comparison.floor == faster.floor
        assert comparison.floor is not None
        assert comparison.share_of_floor(OURS) == comparison.floor.in_phases / 10.0

    @pytest.mark.parametrize(
        "record",
        [
            _measured(OURS, 8, 1.5),
            Memory(_measured(OURS, 8, 1.5).work, OURS, 8, peak_mb=700.0, idle_mb=300.0),
            Absence("ctranslate2", "not installed: ctranslate2"),
        ],
        ids=lambda record: type(record).__name__,
    )
    def test_a_record_is_a_line_and_back(self, record: Measurement | Memory | Absence) -> None:
        assert from_line(to_line(record)) == record
