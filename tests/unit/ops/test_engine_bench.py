"""The benchmark of the engine: its work, its floor, its turns, its report, and a run as a user would start it."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "ops" / "bench"))

from engine_bench.contenders import CONTENDERS, OURS, Case, Contender, Runner, check_lengths
from engine_bench.errors import BenchError, WrongLengths
from engine_bench.floor import Rates, floor, need
from engine_bench.measure import Bench, Options, timed
from engine_bench.models import MODELS, Linear, ModelShape, make_model
from engine_bench.records import Absence, MachineRates, Measurement, Memory, Record, Work, from_line, to_line
from engine_bench.report import compare, final_json
from engine_bench.schedule import Trial, Turn, sizes_for, turns
from engine_bench.tables import report
from engine_bench.workloads import WORKLOADS, Lengths, Request, Workload, workload

SCRIPT = Path(__file__).parents[3] / "ops" / "bench" / "engine"

#: Small enough to count by hand: 2 layers of 128 weights (4 x 12, 4 x 4, 4 x 8, 8 x 4), a head of 40.
SMALL = ModelShape("gpt2", hidden=4, layers=2, heads=2, kv_heads=2, intermediate=8, vocabulary=10, context=32)


class TestTheFloor:
    def test_every_token_but_a_rows_last_goes_through_the_layers_and_every_output_token_through_the_head(self) -> None:
        needed = need(SMALL, Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0))
        assert needed.positions == (3 + 1) + (1 + 0)
        assert needed.head_rows == 2 + 1
        assert needed.linear_flops == 2 * (2 * 128) * 5 + 2 * 40 * 3

    def test_attention_sees_each_position_and_all_before_it(self) -> None:
        needed = need(SMALL, Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0))
        per_context = 4 * 2 * 2 * 2
        assert needed.prefill_attention_flops == per_context * ((1 + 2 + 3) + 1)
        assert needed.decode_attention_flops == per_context * 4

    def test_bytes_are_the_weights_in_each_step_and_keys_and_values_written_once_and_read_by_each_token(self) -> None:
        needed = need(SMALL, Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0))
        assert needed.weight_bytes == 4 * (2 * 128 + 40) * 2
        # Two numbers of 4 bytes for each of 2 layers, 2 heads and 2 places; 5 written, 3 read by the one token.
        assert needed.kv_bytes == (2 * 4 * 2 * 2 * 2) * (5 + 3)

    def test_what_prompts_share_is_computed_once_and_read_once_in_each_step(self) -> None:
        needed = need(SMALL, Workload("shared-prefix", (Lengths(3, 2), Lengths(4, 2)), seed=0, shared_prefix=2))
        assert needed.positions == 2 + (1 + 1) + (2 + 1)
        per_context = 4 * 2 * 2 * 2
        assert needed.prefill_attention_flops == per_context * ((1 + 2) + 3 + (3 + 4))
        assert needed.decode_attention_flops == per_context * (4 + 5)
        # Read: one own position of the first row, two of the second, and the two shared in the one step.
        assert needed.kv_bytes == (2 * 4 * 2 * 2 * 2) * (7 + (1 + 2 + 2))

    def test_grouped_queries_have_fewer_keys_and_values_and_as_much_attention(self) -> None:
        work = Workload("mixed", (Lengths(5, 4),), seed=0)
        grouped = need(replace(SMALL, kv_heads=1), work)
        assert grouped.kv_bytes * 2 == need(SMALL, work).kv_bytes
        assert grouped.decode_attention_flops == need(SMALL, work).decode_attention_flops

    def test_each_phase_takes_what_its_flops_or_its_bytes_take(self) -> None:
        work = Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0)
        shapes = [linear.shape for linear in (*SMALL.layer_linears, SMALL.head)]
        slow_memory = floor(SMALL, work, Rates(dict.fromkeys(shapes, 1e12), bandwidth=1.0))
        assert (slow_memory.linear, slow_memory.decode_attention) == (2368, 512)
        assert slow_memory.overlapped == 2368 + 512
        slow_products = floor(SMALL, work, Rates(dict.fromkeys(shapes, 1.0), bandwidth=1e12))
        assert slow_products.linear == 2800
        assert (slow_products.prefill_attention, slow_products.decode_attention) == (32 * 7, 32 * 4)
        assert slow_products.in_phases == slow_products.overlapped == 2800 + 32 * 11

    def test_each_shape_of_weight_counts_at_its_own_rate(self) -> None:
        work = Workload("mixed", (Lengths(3, 1),), seed=0)
        flops = {(4, 12): 1.0, (4, 4): 2.0, (4, 8): 4.0, (8, 4): 8.0, (4, 10): 16.0}
        positions = 3
        expected = 2 * 2 * positions * (48 / 1 + 16 / 2 + 32 / 4 + 32 / 8) + 2 * 40 / 16
        assert floor(SMALL, work, Rates(flops, bandwidth=1e12)).linear == expected

    @pytest.mark.parametrize("seed", range(20))
    def test_doing_one_after_the_other_never_takes_less_than_overlapping_all(self, seed: int) -> None:
        rng = random.Random(seed)
        shape = rng.choice([*MODELS.values(), SMALL])
        work = workload(rng.choice(WORKLOADS), rng.randint(1, 40), seed)
        flops = {linear.shape: 10 ** rng.uniform(8, 13) for linear in (*shape.layer_linears, shape.head)}
        bound = floor(shape, work, Rates(flops, bandwidth=10 ** rng.uniform(8, 13)))
        assert bound.in_phases >= bound.overlapped * (1 - 1e-9)


@pytest.fixture
def _transformers_as_before() -> Iterator[None]:
    """The benchmark silences transformers, sets the threads of torch and freezes objects, for its whole process."""
    torch = pytest.importorskip("torch")
    transformers_logging = pytest.importorskip("transformers.utils.logging")
    threads, verbosity = torch.get_num_threads(), transformers_logging.get_verbosity()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


@pytest.mark.usefixtures("_transformers_as_before")
class TestTheModels:
    @pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
    def test_the_linear_layers_of_a_shape_are_those_of_the_model(self, name: str, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        make_model(MODELS[name], tmp_path, seed=0)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        linears: Counter[tuple[int, int]] = Counter()
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                linears[layer.in_features, layer.out_features] += 1
            elif type(layer).__name__ == "Conv1D":
                linears[layer.nx, layer.nf] += 1
        shape = MODELS[name]
        assert linears == _by_shape((*shape.layer_linears, shape.head))

    def test_the_llama_has_about_100_million_parameters(self) -> None:
        shape = MODELS["llama"]
        weights = sum(linear.count * linear.inputs * linear.outputs for linear in (*shape.layer_linears, shape.head))
        assert weights == pytest.approx(100e6, rel=0.01)


def _by_shape(linears: tuple[Linear, ...]) -> Counter[tuple[int, int]]:
    counted: Counter[tuple[int, int]] = Counter()
    for linear in linears:
        counted[linear.shape] += linear.count
    return counted


class TestTheWorkloads:
    @pytest.mark.parametrize("name", WORKLOADS)
    def test_a_seed_gives_the_same_requests_again_and_another_seed_others(self, name: str) -> None:
        made = workload(name, 20, seed=3)
        assert made == workload(name, 20, seed=3)
        assert made.requests(500, 1) == workload(name, 20, seed=3).requests(500, 1)
        assert made.requests(500, 1) != workload(name, 20, seed=4).requests(500, 1)

    @pytest.mark.parametrize("name", WORKLOADS)
    def test_rounds_have_the_same_lengths_and_other_tokens(self, name: str) -> None:
        made = workload(name, 20, seed=0)
        first, second = made.requests(500, 0), made.requests(500, 1)
        assert [Lengths(len(one.prompt_ids), one.output_tokens) for one in first] == [*made.rows]
        assert [len(one.prompt_ids) for one in first] == [len(one.prompt_ids) for one in second]
        assert all(one.prompt_ids != other.prompt_ids for one, other in zip(first, second, strict=True))
        assert all(3 <= token < 500 for one in first for token in one.prompt_ids)

    @pytest.mark.parametrize("requests", [32, 128])
    def test_mixed_lengths_have_their_mean_and_their_tail(self, requests: int) -> None:
        made = workload("mixed", requests, seed=0)
        assert made.prompt_tokens / requests == pytest.approx(61, abs=1.5)
        assert made.output_tokens / requests == pytest.approx(71, abs=1.5)
        assert 240 <= max(row.output for row in made.rows) <= 256

    def test_prompts_share_their_template_and_nothing_more(self) -> None:
        made = workload("shared-prefix", 30, seed=0)
        prompts = [one.prompt_ids for one in made.requests(50257, 0)]
        assert len({tuple(prompt[:150]) for prompt in prompts}) == 1
        assert len({prompt[150] for prompt in prompts}) > 1
        assert {row.output for row in made.rows} == {32}
        assert (min(map(len, prompts)), max(map(len, prompts))) == (150 + 20, 150 + 60)

    @pytest.mark.parametrize(("model", "name"), [(model, name) for model in MODELS for name in WORKLOADS])
    def test_every_request_fits_into_the_context_of_every_model(self, model: str, name: str) -> None:
        longest = max(row.total for row in workload(name, 128, seed=0).rows)
        assert longest <= MODELS[model].context


class TestLengths:
    def test_a_token_too_few_or_too_many_is_an_error_that_says_which(self) -> None:
        requests = [Request([1, 2], 2), Request([1], 3)]
        check_lengths(requests, [[7, 7], [7, 7, 7]])
        with pytest.raises(WrongLengths, match="request 1: 2 tokens instead of 3"):
            check_lengths(requests, [[7, 7], [7, 7]])
        with pytest.raises(WrongLengths, match="request 0: 3 tokens instead of 2"):
            check_lengths(requests, [[7, 7, 7], [7, 7, 7]])
        with pytest.raises(WrongLengths, match="1 answers to 2 requests"):
            check_lengths(requests, [[7, 7]])

    def test_a_contender_that_stops_early_has_no_time(self, tmp_path: Path) -> None:
        lazy = Contender("lazy", "stops a token early", f"{__name__}:_lazy", needs=())
        with pytest.raises(WrongLengths):
            timed(lazy, Case(tmp_path, [Request([1], 5)], rows=1, threads=1))

    def test_what_a_contender_lacks_is_named(self) -> None:
        assert Contender("one", "", "", needs=("json", "no_such_module", "no_such.part")).missing() == [
            "no_such_module",
            "no_such.part",
        ]


@contextmanager
def _lazy(case: Case) -> Iterator[Runner]:
    yield Runner(lambda: [[0] * (request.output_tokens - 1) for request in case.requests])


class TestTurns:
    def _taken(self, trials: list[Trial], seconds: dict[str, dict[int, float]]) -> list[tuple[str, int, int]]:
        taken = []
        for turn in turns(trials):
            name = turn.trial.contender.name
            taken.append((name, turn.rows, turn.round))
            if turn.rows not in seconds[name]:
                turn.trial.failure = "out of memory"
            elif turn.round == 0:
                turn.trial.seconds[turn.rows] = seconds[name][turn.rows]
        return taken

    def _trial(self, name: str, sizes: tuple[int, ...], rounds: int = 3) -> Trial:
        return Trial(CONTENDERS[name], sizes, rounds)

    def test_each_size_once_then_the_best_until_it_has_its_rounds(self) -> None:
        taken = self._taken([self._trial(OURS, (8, 32))], {OURS: {8: 10.0, 32: 5.0}})
        assert taken == [(OURS, 8, 0), (OURS, 32, 0), (OURS, 32, 1), (OURS, 32, 2)]

    def test_larger_sizes_are_not_tried_once_one_is_a_quarter_slower_than_the_best(self) -> None:
        seconds = {OURS: {8: 10.0, 32: 12.0, 64: 12.6, 128: 1.0}}
        taken = self._taken([self._trial(OURS, (8, 32, 64, 128), rounds=1)], seconds)
        assert [rows for _, rows, _ in taken] == [8, 32, 64]

    def test_contenders_take_turns_and_another_one_begins_each_round(self) -> None:
        trials = [self._trial(name, (8,)) for name in ("padded-sorted", "ctranslate2", OURS)]
        taken = self._taken(trials, {trial.contender.name: {8: 1.0} for trial in trials})
        first = {round_: next(name for name, _, at in taken if at == round_) for round_ in range(3)}
        assert [*first.values()] == ["padded-sorted", "ctranslate2", OURS]
        assert Counter(name for name, _, _ in taken) == {"padded-sorted": 3, "ctranslate2": 3, OURS: 3}
        assert [at for _, _, at in taken] == sorted(at for _, _, at in taken)

    def test_one_that_failed_takes_no_more_turns_and_the_others_go_on(self) -> None:
        trials = [self._trial("ctranslate2", (8, 32)), self._trial(OURS, (8, 32))]
        taken = self._taken(trials, {"ctranslate2": {8: 1.0}, OURS: {8: 1.0, 32: 1.0}})
        assert [turn for turn in taken if turn[0] == "ctranslate2"] == [("ctranslate2", 8, 0), ("ctranslate2", 32, 0)]
        assert len([turn for turn in taken if turn[0] == OURS]) == 4

    def test_sizes_beyond_the_number_of_requests_are_one(self) -> None:
        assert sizes_for(CONTENDERS[OURS], [8, 32, 64, 128], requests=40) == (8, 32, 40)
        assert sizes_for(CONTENDERS["sequential"], [8, 32], requests=40) == (1,)

    def test_a_turn_names_its_trial(self) -> None:
        trial = self._trial(OURS, (8,), rounds=1)
        assert [*turns([trial])] == [Turn(trial, 8, 0)]


@pytest.mark.usefixtures("_transformers_as_before")
class TestARun:
    def _run(self, folder: Path, **more: Any) -> tuple[list[Record], Bench]:
        options = Options(
            models=["tiny"],
            workloads=["uniform"],
            contenders=["sequential"],
            requests=1,
            batch_sizes=[8],
            rounds=1,
            rounds_slow=1,
            threads=1,
            seed=0,
            layers=1,
            rate_seconds=None,
        )
        records: list[Record] = []
        bench = Bench(replace(options, **more), folder, SCRIPT, records.append, lambda line: None)
        bench.run()
        return records, bench

    def test_memory_is_that_of_a_process_which_does_one_pass_and_nothing_else(self, tmp_path: Path) -> None:
        records, _ = self._run(tmp_path, memory=True)
        (found,) = [record for record in records if isinstance(record, Memory)]
        assert (found.contender, found.rows, found.work.workload) == ("sequential", 1, "uniform")
        assert 0 < found.idle_mb < found.peak_mb

    def test_what_the_budget_does_not_allow_is_left_out_and_counted(self, tmp_path: Path) -> None:
        records, bench = self._run(tmp_path, budget=0.0, rounds_slow=3)
        assert not [record for record in records if isinstance(record, Measurement)]
        assert bench.left_out == 1


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


def _bench(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of the script."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """A run of all contenders: stdout, stderr, and the file of its findings."""
    out = tmp_path_factory.mktemp("bench") / "run.jsonl"
    size = ("--models", "tiny", "--workloads", "mixed", "shared-prefix", "--requests", "5", "--batch-sizes", "3")
    stdout, stderr = _bench(*size, "--rounds", "1", "--threads", "1", "--quick", "--out", out)
    return stdout, stderr, out


class TestTheScript:
    def test_every_contender_takes_part_or_is_said_not_to(self, ran: tuple[str, str, Path]) -> None:
        stdout, stderr, _ = ran
        output = json.loads(stdout.splitlines()[-1])
        present = [name for name, contender in CONTENDERS.items() if not contender.missing()]
        assert [*output["shared-prefix"]] == present
        assert [*output["mixed"]] == [name for name in present if CONTENDERS[name].only is None]
        for name in CONTENDERS.keys() - set(present):
            assert f"{name} took no part, not installed: " in stderr

    def test_every_contender_did_all_the_work(self, ran: tuple[str, str, Path]) -> None:
        records = [from_line(line) for line in ran[2].read_text().splitlines()]
        measured = [record for record in records if isinstance(record, Measurement)]
        tokens = {(one.work.workload, one.output_tokens) for one in measured}
        assert tokens == {(name, workload(name, 5, seed=0).output_tokens) for name in ("mixed", "shared-prefix")}
        assert all(one.seconds > 0 for one in measured)

    def test_what_was_written_can_be_reported_and_plotted_without_running(
        self, ran: tuple[str, str, Path], tmp_path: Path
    ) -> None:
        stdout, _, out = ran
        if find_spec("matplotlib") is None:
            _, stderr = _bench("--report", out, "--plot", tmp_path / "bench.svg", code=2)
            assert "pip install 'promptmill[bench]'" in stderr
            return
        plots = [tmp_path / "one.svg", tmp_path / "two.svg"]
        for plot in plots:
            again, stderr = _bench("--report", out, "--plot", plot)
            assert again == stdout.splitlines()[-1] + "\n"
            assert "of floor" in stderr
        assert ElementTree.parse(plots[0]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert plots[0].read_bytes() == plots[1].read_bytes()

    def test_a_report_of_nothing_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jsonl").touch()
        _, stderr = _bench("--report", tmp_path / "empty.jsonl", code=2)
        assert stderr == "engine: nothing was measured\n"

    def test_a_file_of_something_else_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "other.jsonl").write_text("{}\n")
        _, stderr = _bench("--report", tmp_path / "other.jsonl", code=2)
        assert "other.jsonl:1 is no line of this benchmark" in stderr
        assert "Traceback" not in stderr
