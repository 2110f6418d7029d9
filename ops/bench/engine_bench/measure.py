"""The run: models are made, contenders take turns on each workload, every finding is handed on at once."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from bench_errors import BenchError

from engine_bench.contenders import CONTENDERS, Case, Contender, check_lengths
from engine_bench.memory import Alone
from engine_bench.models import make_model, model_shape
from engine_bench.records import Absence, Failure, Machine, MachineRates, Measurement, Memory, Record, Work
from engine_bench.schedule import Pace, Trial, Turn, sizes_for, turns
from engine_bench.workloads import Workload, workload


@dataclass(frozen=True)
class Options:
    models: Sequence[str]
    workloads: Sequence[str]
    contenders: Sequence[str]
    requests: int
    batch_sizes: Sequence[int]
    rounds: int
    #: Of the contenders that are marked as slow.
    rounds_slow: int
    threads: int
    seed: int
    #: Instead of the model's own number of layers.
    layers: int | None = None
    #: Seconds after which no measurement begins that is expected to end later.
    budget: float | None = None
    #: Whether to measure peak memory too, in a process for each contender.
    memory: bool = False
    #: Seconds for each product whose rate is measured for the floor; None: no floor.
    rate_seconds: float | None = 0.05


class Bench:
    """``record`` gets every finding; ``say`` a line for people; models are made in ``folder``."""

    def __init__(
        self,
        options: Options,
        folder: Path,
        script: Path,
        record: Callable[[Record], None],
        say: Callable[[str], None],
    ) -> None:
        self._options = options
        self._folder = folder
        self._script = script
        self._record, self._say = record, say
        self._started = time.perf_counter()
        self._pace = Pace()
        #: Turns not yet taken of (model, workload, contender).
        self._ahead: Counter[tuple[str, str, str]] = Counter()
        self._made = {name: workload(name, options.requests, options.seed) for name in options.workloads}
        #: Turns that the budget did not allow.
        self.left_out = 0

    def run(self) -> None:
        """Raises BenchError if no contender can run."""
        options = self._options
        self._record(Machine.here())
        present = [*self._present()]
        if not present:
            raise BenchError("none of these contenders can run here: pip install 'promptmill[worker,bench]'")
        self._ahead.update(self._all_turns(present))
        for model in options.models:
            self._say(f"{model}: making the model")
            make_model(model_shape(model, options.layers), self._folder / model, options.seed)
            if options.rate_seconds is not None:
                self._rates(model, options.rate_seconds)
            # Collecting garbage around each measurement goes through every object, most of which are imported modules.
            gc.collect()
            gc.freeze()
            for name in options.workloads:
                self._workload(model, self._made[name], present)

    def _present(self) -> Iterator[Contender]:
        for name in self._options.contenders:
            missing = CONTENDERS[name].missing()
            if missing:
                reason = f"not installed: {', '.join(missing)}"
                self._record(Absence(name, reason))
                self._say(f"{name} is left out, {reason}")
            else:
                yield CONTENDERS[name]

    def _rates(self, model: str, seconds: float) -> None:
        from engine_bench import rates

        options = self._options
        self._say(f"{model}: measuring what the machine can do at its shapes")
        shape = model_shape(model, options.layers)
        found = rates.measure(shape, options.threads, seconds)
        products = [asdict(product) for product in found.products]
        self._record(
            MachineRates(model, shape.layers, options.threads, products, found.bandwidth, list(found.libraries))
        )

    def _workload(self, model: str, made: Workload, present: Sequence[Contender]) -> None:
        options = self._options
        work = Work.of(model, options.layers, made, options.threads)
        trials = [self._trial(contender) for contender in present if contender.only in (None, made.name)]
        for turn in turns(trials):
            self._ahead[model, made.name, turn.trial.contender.name] -= 1
            if self._affordable(turn.trial, turn.rows, made):
                self._measure(turn, work, made)
        for trial in trials:
            # Sizes that were not tried, and rounds of those that failed.
            del self._ahead[model, made.name, trial.contender.name]
        for trial in trials:
            finished = trial.seconds and trial.failure is None
            if options.memory and finished and self._affordable(trial, trial.best, made):
                self._memory(trial, work)

    def _trial(self, contender: Contender) -> Trial:
        options = self._options
        sizes = sizes_for(contender, options.batch_sizes, options.requests)
        return Trial(contender, sizes, options.rounds_slow if contender.slow else options.rounds)

    def _all_turns(self, present: Sequence[Contender]) -> dict[tuple[str, str, str], int]:
        """The most turns that there can be."""
        trials = [self._trial(contender) for contender in present]
        return {
            (model, name, trial.contender.name): len(trial.sizes) + trial.rounds - 1
            for model, name, trial in product(self._options.models, self._options.workloads, trials)
            if trial.contender.only in (None, name)
        }

    def _affordable(self, trial: Trial, rows: int, made: Workload) -> bool:
        name, budget = trial.contender.name, self._options.budget
        seconds = self._pace.seconds(name, made.prompt_tokens + made.output_tokens)
        if budget is None or self._elapsed + seconds <= budget:
            return True
        self.left_out += 1
        self._say(f"{name}, batch {rows}, is left out: about {seconds:.0f} s, and the budget is {budget:.0f} s")
        return False

    def _measure(self, turn: Turn, work: Work, made: Workload) -> None:
        trial, name = turn.trial, turn.trial.contender.name
        requests = made.requests(model_shape(work.model).vocabulary, turn.round)
        case = Case(self._folder / work.model, requests, turn.rows, work.threads, made.shared_prefix)
        try:
            seconds, stats = timed(trial.contender, case)
        # Whatever is wrong with one contender must not cost what the others have still to do.
        except Exception as error:
            trial.failure = f"{type(error).__name__}: {error}"
            self._record(Failure(work, name, turn.rows, trial.failure))
            self._progress(turn, work, f"FAILED: {trial.failure}")
            return
        if turn.round == 0:
            trial.seconds[turn.rows] = seconds
        self._pace.add(name, seconds, made.prompt_tokens + made.output_tokens)
        found = Measurement(work, name, turn.rows, turn.round, seconds, made.output_tokens, stats)
        self._record(found)
        self._progress(turn, work, f"{found.tokens_per_s:8.1f} tok/s in {seconds:.1f} s")

    def _memory(self, trial: Trial, work: Work) -> None:
        alone = Alone(str(self._folder / work.model), work, trial.contender.name, trial.best)
        command = [sys.executable, str(self._script), "--alone", json.dumps(asdict(alone))]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            self._record(Failure(work, alone.contender, alone.rows, f"in a process of its own: {reason}"))
            self._say(f"{alone.contender} FAILED in a process of its own: {reason}")
            return
        found = Memory(work, alone.contender, alone.rows, **json.loads(done.stdout))
        self._record(found)
        self._say(f"{alone.contender} alone: {found.peak_mb:.0f} MB at most, {found.idle_mb:.0f} MB without a model")

    @property
    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _progress(self, turn: Turn, work: Work, found: str) -> None:
        what = f"{work.model}/{work.workload} {turn.trial.contender.name}, batch {turn.rows}, round {turn.round + 1}"
        self._say(f"[{_clock(self._elapsed)}, about {_clock(self._seconds_ahead)} left] {what}: {found}")

    @property
    def _seconds_ahead(self) -> float:
        """By the pace so far. Loading models is not in it, and sizes that will not be tried are."""
        return sum(
            count * self._pace.seconds(contender, self._made[name].prompt_tokens + self._made[name].output_tokens)
            for (_, name, contender), count in self._ahead.items()
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


def timed(contender: Contender, case: Case) -> tuple[float, dict[str, float]]:
    """Seconds for all requests, from a loaded and warm model; what the contender says about itself.

    The model is loaded anew for each measurement: nothing that one left behind (caches, replaced layers) helps or
    hinders another. Raises WrongLengths, and whatever the contender does.
    """
    with contender.open(case) as runner:
        gc.collect()
        started = time.perf_counter()
        outputs = runner.run()
        seconds = time.perf_counter() - started
        stats = runner.stats()
    check_lengths(case.requests, outputs)
    # Else the model of this contender would live until after the next one is loaded.
    del runner
    gc.collect()
    return seconds, stats
