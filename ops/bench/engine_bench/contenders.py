"""Who takes part, and what all of them have in common. What a contender needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from bench_errors import WrongLengths

from engine_bench.workloads import Request


@dataclass(frozen=True)
class Case:
    """One measurement: what to generate, from which model, with how many rows at once on how many threads."""

    folder: Path
    requests: Sequence[Request]
    rows: int
    threads: int
    #: Tokens that all prompts begin with.
    shared_prefix: int = 0


@dataclass(frozen=True)
class Runner:
    """A contender whose model is loaded and warm. ``run`` is what is timed; it gives each request's tokens."""

    run: Callable[[], list[list[int]]]
    #: What the contender says about itself after the run.
    stats: Callable[[], dict[str, float]] = dict


@dataclass(frozen=True)
class Contender:
    name: str
    #: In one line, for people.
    title: str
    #: ``module:function``; the function takes a Case and gives a context manager of a Runner.
    opener: str
    #: Modules without which it cannot run.
    needs: tuple[str, ...]
    #: Whether the number of rows at once is its to choose.
    batches: bool = True
    #: The only workload on which it takes part, if not all.
    only: str | None = None
    #: Whether it is so slow that --rounds-slow is for it.
    slow: bool = False

    def missing(self) -> list[str]:
        """Those of its modules that are not there."""
        return [name for name in self.needs if not _is_there(name)]

    def open(self, case: Case) -> AbstractContextManager[Runner]:
        module, _, function = self.opener.partition(":")
        opened: AbstractContextManager[Runner] = getattr(import_module(module), function)(case)
        return opened


_TORCH = ("torch", "transformers")

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(
            "sequential",
            "transformers' generate, one prompt at a time",
            "engine_bench.transformers_contenders:sequential",
            _TORCH,
            batches=False,
            slow=True,
        ),
        Contender(
            "padded-input-order",
            "transformers' generate, batches padded on the left, as the requests come",
            "engine_bench.transformers_contenders:padded_input_order",
            _TORCH,
            slow=True,
        ),
        Contender(
            "padded-sorted",
            "the same, sorted by prompt plus stop length, which it knows",
            "engine_bench.transformers_contenders:padded_sorted",
            _TORCH,
        ),
        Contender(
            "generate-batch",
            "transformers' generate_batch: continuous batching",
            "engine_bench.transformers_contenders:generate_batch",
            # Without psutil it does not know how much memory a CPU has.
            (*_TORCH, "psutil"),
        ),
        Contender(
            "ctranslate2",
            "CTranslate2, float32, sorted by prompt length, rows stopped by its callback",
            "engine_bench.ctranslate2_contender:plain",
            (*_TORCH, "ctranslate2"),
        ),
        Contender(
            "ctranslate2-static-prompt",
            "the same with the template as its cached static prompt",
            "engine_bench.ctranslate2_contender:with_static_prompt",
            (*_TORCH, "ctranslate2"),
            only="shared-prefix",
        ),
        Contender(
            "ours-padded",
            "worker.engine.padded: static padded batches",
            "engine_bench.our_contenders:padded",
            (*_TORCH, "worker.engine.padded"),
        ),
        Contender(
            "ours-inflight",
            "worker.engine.inflight: in-flight batching",
            "engine_bench.our_contenders:inflight",
            (*_TORCH, "worker.engine.inflight"),
        ),
    )
}

#: What all ratios are to.
OURS = "ours-inflight"


def check_lengths(requests: Sequence[Request], outputs: Sequence[Sequence[int]]) -> None:
    """Raises WrongLengths unless each request has exactly the tokens that it asked for."""
    if len(outputs) != len(requests):
        raise WrongLengths(f"{len(outputs)} answers to {len(requests)} requests")
    wrong = [
        f"request {i}: {len(tokens)} tokens instead of {request.output_tokens}"
        for i, (request, tokens) in enumerate(zip(requests, outputs, strict=True))
        if len(tokens) != request.output_tokens
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise WrongLengths("; ".join(wrong[:3]) + more)


def in_input_order(order: Sequence[int], outputs: Sequence[list[int]]) -> list[list[int]]:
    """``outputs[k]`` belongs to request ``order[k]``; the same lists by request."""
    by_request = dict(zip(order, outputs, strict=True))
    return [by_request[i] for i in range(len(order))]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
