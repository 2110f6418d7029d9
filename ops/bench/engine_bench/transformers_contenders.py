"""transformers: ``generate`` one by one and in padded batches, and its continuous batching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from bench_errors import BenchError
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from engine_bench.contenders import Case, Runner, in_input_order
from engine_bench.models import quiet_transformers
from engine_bench.workloads import Request

#: What every contender generates before it is timed: it touches all weights, which are mapped from a file.
WARM_UP = [Request([7] * 12, 3), Request([11] * 5, 4)]

#: The longest page, in tokens, of the continuous batching's cache.
_PAGE = 32

#: Tokens in one step of the continuous batching; on a CPU more did not make it faster.
_STEP_TOKENS = 512


def load(case: Case) -> Any:
    """The model in float32, loaded for this case alone."""
    quiet_transformers()
    torch.set_num_threads(case.threads)
    return AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32)


@contextmanager
def sequential(case: Case) -> Iterator[Runner]:
    model = load(case)
    _generate(model, WARM_UP, 1)
    yield Runner(lambda: _generate(model, case.requests, 1))


@contextmanager
def padded_input_order(case: Case) -> Iterator[Runner]:
    model = load(case)
    _generate(model, WARM_UP, case.rows)
    yield Runner(lambda: _generate(model, case.requests, case.rows))


@contextmanager
def padded_sorted(case: Case) -> Iterator[Runner]:
    model = load(case)
    _generate(model, WARM_UP, case.rows)

    def run() -> list[list[int]]:
        asked = case.requests
        order = sorted(range(len(asked)), key=lambda i: len(asked[i].prompt_ids) + asked[i].output_tokens)
        return in_input_order(order, _generate(model, [asked[i] for i in order], case.rows))

    yield Runner(run)


def _generate(model: Any, requests: Sequence[Request], rows: int) -> list[list[int]]:
    """Batches of ``rows`` as they stand. Each runs until its longest row has ended; what the others generated after
    their own end is cut off."""
    outputs = []
    for start in range(0, len(requests), rows):
        batch = requests[start : start + rows]
        longest = max(len(request.prompt_ids) for request in batch)
        padding = [longest - len(request.prompt_ids) for request in batch]
        generated = model.generate(
            torch.tensor([[0] * pad + request.prompt_ids for pad, request in zip(padding, batch, strict=True)]),
            attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding]),
            generation_config=_greedy(max(request.output_tokens for request in batch)),
        )
        tokens = generated[:, longest:].tolist()
        outputs += [row[: request.output_tokens] for row, request in zip(tokens, batch, strict=True)]
    return outputs


def _greedy(max_new_tokens: int, **more: Any) -> GenerationConfig:
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0, **more
    )


@contextmanager
def generate_batch(case: Case) -> Iterator[Runner]:
    """What ``model.generate_batch`` does, through the manager that it makes: it has one ``max_new_tokens`` for all
    prompts, while the manager takes one for each. The manager is made and started before the clock is."""
    config = _continuous_config(case)
    # -1 is its word for no end token.
    greedy = _greedy(max(request.output_tokens for request in case.requests), eos_token_id=-1)
    with load(case).continuous_batching_context_manager(greedy, continuous_batching_config=config) as manager:
        _through(manager, WARM_UP)
        yield Runner(lambda: _through(manager, case.requests))


def _continuous_config(case: Case) -> ContinuousBatchingConfig:
    """Room for as many of the longest requests as run at once, so that none has to wait for memory; pages that the
    shared prefix fills without a rest, so that it can share all of it."""
    page = next(size for size in range(_PAGE, 0, -1) if case.shared_prefix % size == 0)
    longest = max(len(request.prompt_ids) + request.output_tokens for request in (*case.requests, *WARM_UP))
    return ContinuousBatchingConfig(
        page_size=page,
        # Its scheduler begins no prompt while less than 15% of the blocks are free: a quarter more than is needed.
        num_blocks=int(1.25 * case.rows * (longest // page + 2)),
        max_batch_tokens=max(_STEP_TOKENS, case.rows),
        max_requests_per_batch=case.rows,
    )


def _through(manager: Any, requests: Sequence[Request]) -> list[list[int]]:
    """The requests first come first served, as its scheduler does; longest answer first, so that no tail is left."""
    order = sorted(range(len(requests)), key=lambda i: -requests[i].output_tokens)
    asked = {manager.add_request(requests[i].prompt_ids, max_new_tokens=requests[i].output_tokens): i for i in order}
    outputs: dict[int, list[int]] = {}
    while len(outputs) < len(requests):
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise BenchError(f"its thread ended early: {manager.background_thread_status.fatal_error}")
        elif result.error is not None:
            raise BenchError(f"a request failed: {result.error}")
        elif result.is_finished():
            outputs[asked[result.request_id]] = result.generated_tokens
    return [outputs[i] for i in range(len(requests))]
