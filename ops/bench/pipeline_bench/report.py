"""Medians of all rounds, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from operator import attrgetter
from statistics import median
from typing import Any

from pipeline_bench.records import Round

#: Of the pipeline's run; the last is a part of the one before it that has its name in the table.
PHASES = ("submit", "claim", "generate", "commit", "finalize", "first_token")


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Medians of all rounds, for the last line of stdout."""

    def middle(value: Callable[[Round], float]) -> float:
        return round(median(map(value, rounds)), 3)

    bare, pipeline = middle(lambda one: one.bare.rate), middle(lambda one: one.pipeline.rate)
    accepted = middle(lambda one: one.pipeline.accepted_rate)
    phases = {name: middle(attrgetter(f"pipeline.{name}")) for name in PHASES}
    return {
        "bare_tokens_per_s": bare,
        "pipeline_tokens_per_s": pipeline,
        "ratio": round(pipeline / bare, 4),
        "ratio_accepted": round(accepted / bare, 4),
        "window_tokens_per_s": middle(lambda one: one.pipeline.window_rate),
        "completion_tokens": rounds[0].bare.completion_tokens,
        "bare_s": middle(lambda one: one.bare.seconds),
        "pipeline_s": middle(lambda one: one.pipeline.seconds),
        "phases_s": phases,
        "between_s": middle(lambda one: one.between),
        "idle_s": middle(lambda one: one.pipeline.generate - one.pipeline.step_seconds),
        "sides": {
            side: {name: middle(attrgetter(f"{side}.{name}")) for name in ("steps", "step_seconds", "cpu_seconds")}
            for side in ("bare", "pipeline")
        },
        "runs": [{"bare": asdict(one.bare), "pipeline": asdict(one.pipeline)} for one in rounds],
    }


def table(rounds: Sequence[Round], found: dict[str, Any]) -> str:
    """The rates of each round, and what the pipeline's seconds are made of."""
    lines = [f"{'round':>6} {'bare tok/s':>11} {'pipeline tok/s':>15} {'window tok/s':>13} {'ratio':>7}"]
    for number, one in enumerate(rounds, 1):
        rates = f"{one.bare.rate:>11.1f} {one.pipeline.rate:>15.1f} {one.pipeline.window_rate:>13.1f}"
        lines.append(f"{number:>6} {rates} {one.ratio:>7.1%}")
    rates = f"{found['bare_tokens_per_s']:>11.1f} {found['pipeline_tokens_per_s']:>15.1f}"
    lines.append(f"{'median':>6} {rates} {found['window_tokens_per_s']:>13.1f} {found['ratio']:>7.1%}")
    phases, sides = found["phases_s"], found["sides"]
    lines += ["", f"{'phase':>22} {'seconds':>8} {'of the pipeline':>16}"]
    shown = {name: phases[name] for name in PHASES[:-1]}
    shown |= {"generate: first token": phases["first_token"], "generate: idle": found["idle_s"]}
    shown |= {"generate: between": found["between_s"]}
    lines += [f"{name:>22} {spent:>8.2f} {spent / found['pipeline_s']:>16.1%}" for name, spent in shown.items()]
    lines.append(f"{'bare engine':>22} {found['bare_s']:>8.2f}")
    lines += ["", f"{'side':>22} {'steps':>8} {'ms each':>8} {'cpu s':>8}"]
    for side, numbers in sides.items():
        each = 1000 * numbers["step_seconds"] / numbers["steps"]
        lines.append(f"{side:>22} {numbers['steps']:>8.0f} {each:>8.2f} {numbers['cpu_seconds']:>8.2f}")
    return "\n".join(["", *lines])
