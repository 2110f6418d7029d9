"""How the benchmark of the engine measures: lengths that are checked, turns, and a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_errors import WrongLengths
from engine_bench.contenders import CONTENDERS, OURS, Case, Contender, Runner, check_lengths
from engine_bench.measure import Bench, Options, timed
from engine_bench.records import Measurement, Memory, Record
from engine_bench.schedule import Trial, Turn, sizes_for, turns
from engine_bench.workloads import Request

SCRIPT = Path(__file__).parents[3] / "ops" / "bench" / "engine"


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
