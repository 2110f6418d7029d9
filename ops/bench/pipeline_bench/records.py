"""What both sides are given, and what each run of them comes to. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[3]

#: The name that the worker serves the model by.
ALIAS = "bench"


EngineChoice = Literal["auto", "inflight", "padded"]


@dataclass(frozen=True)
class Setup:
    """What is the same for both sides."""

    model: str
    #: As ``promptmill-worker start`` takes them.
    engine: EngineChoice
    threads: int
    max_rows: int
    #: None: what suits the engine.
    max_batch_tokens: int | None


@dataclass(frozen=True)
class Prompts:
    """A JSONL file of prompts, and the tokens to generate for each."""

    path: Path
    output_tokens: list[int]


@dataclass(frozen=True)
class Run:
    """Seconds of one run, of either side; tokens, steps and seconds within steps as the engine counted them."""

    #: The name of the engine that ran.
    engine: str
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    steps: int
    step_seconds: float
    #: Processor time of the process with the engine, all of its threads.
    cpu_seconds: float

    @property
    def rate(self) -> float:
        return self.completion_tokens / self.seconds


@dataclass(frozen=True)
class PipelineRun(Run):
    """Its phases, in seconds, add up to ``seconds``; the first token is a part of ``generate``."""

    submit: float
    claim: float
    generate: float
    commit: float
    finalize: float
    first_token: float

    @property
    def window_rate(self) -> float:
        return self.completion_tokens / (self.generate + self.commit)

    @property
    def accepted_rate(self) -> float:
        return self.completion_tokens / (self.seconds - self.submit)


@dataclass(frozen=True)
class Round:
    bare: Run
    pipeline: PipelineRun

    @property
    def ratio(self) -> float:
        return self.pipeline.rate / self.bare.rate

    @property
    def between(self) -> float:
        return self.pipeline.generate - self.bare.seconds


def environment(setup: Setup, **own: str) -> dict[str, str]:
    """Of every process: this checkout, as many threads, and no settings but ``own``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    threads = {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}
    return {**inherited, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **threads, **own}
