"""CTranslate2 in float32, from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from engine_bench.contenders import Case, Runner, in_input_order
from engine_bench.workloads import Request


@contextmanager
def plain(case: Case) -> Iterator[Runner]:
    with _opened(case, shared_prefix=0) as runner:
        yield runner


@contextmanager
def with_static_prompt(case: Case) -> Iterator[Runner]:
    """It computes what all prompts begin with once and copies the state into each batch."""
    with _opened(case, case.shared_prefix) as runner:
        yield runner


def converted(folder: Path) -> Path:
    """The model in CTranslate2's format, in a folder beside its files; made once."""
    target = folder / "ctranslate2"
    if not target.exists():
        converters = import_module("ctranslate2.converters")
        converters.TransformersConverter(str(folder)).convert(str(target), quantization="float32")
    return target


@contextmanager
def _opened(case: Case, shared_prefix: int) -> Iterator[Runner]:
    generator = import_module("ctranslate2").Generator(
        str(converted(case.folder)),
        device="cpu",
        compute_type="float32",
        inter_threads=1,
        intra_threads=case.threads,
    )
    # Its decoder takes tokens of the vocabulary, which are the ids as text.
    texts = [[str(token) for token in request.prompt_ids] for request in case.requests]
    order = longest_prompt_first(case.requests)

    def run() -> list[list[int]]:
        outputs = []
        for start in range(0, len(order), case.rows):
            batch = order[start : start + case.rows]
            stops = [case.requests[i].output_tokens for i in batch]
            outputs += _generate(generator, [texts[i] for i in batch], stops, shared_prefix)
        return in_input_order(order, outputs)

    _generate(generator, [["7"] * 12, ["11"] * 5], [3, 4], 0)
    yield Runner(run)


def longest_prompt_first(requests: Sequence[Request]) -> list[int]:
    """The order of its batches. It computes at once only what the shortest prompt of a batch is long, and the rest of
    longer prompts token by token, so batches of alike prompts were its fastest. Answers of one length next to each
    other, as far as prompts of one length go."""
    return sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt_ids), -requests[i].output_tokens))


def _generate(
    generator: Any, prompts: Sequence[Sequence[str]], stops: Sequence[int], shared_prefix: int
) -> list[list[int]]:
    """One batch. A row leaves the batch when it has its tokens; its others go on without it."""
    static = {"static_prompt": list(prompts[0][:shared_prefix])} if shared_prefix else {}
    results = generator.generate_batch(
        [list(prompt[shared_prefix:]) for prompt in prompts],
        max_length=max(stops),
        callback=_stop_at(stops) if len(set(stops)) > 1 else None,
        include_prompt_in_result=False,
        # Nothing ends a text but its length.
        end_token=[],
        **static,
    )
    return [result.sequences_ids[0] for result in results]


def _stop_at(stops: Sequence[int]) -> Callable[[Any], bool]:
    """Its callback, which is called for each generated token and says whether the row has ended.

    ``batch_id`` is the row's place in the list that ``generate_batch`` was given, as long as that is one batch.
    """
    counts = [0] * len(stops)

    def ended(step: Any) -> bool:
        place: int = step.batch_id
        counts[place] += 1
        return counts[place] >= stops[place]

    return ended
