"""Running requests through an engine, and checking its tokens against the model alone."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from jobs.spec import SamplingParams
from worker.engine.inflight import InflightEngine
from worker.engine.padded import PaddedEngine
from worker.engine.request import Completion, EngineLimits, Request
from worker.engine.sampler import uniforms
from worker.models import LoadedModel

#: Below this distance between the best two logits, or between a draw and an edge of the distribution, either
#: token is right: float32 rounds differently in batches of another shape.
NEAR_TIE = 1e-4

#: The first ids of the tiny tokenizers are special; the rest is text.
FIRST_TEXT_ID = 3


def engine_for(loaded: LoadedModel, **limits: int) -> PaddedEngine:
    return PaddedEngine(loaded.model, loaded.tokenizer, EngineLimits(**{"max_length": loaded.max_length, **limits}))


def inflight_for(loaded: LoadedModel, **limits: int) -> InflightEngine:
    """An in-flight engine over a copy of the model: it changes its own, and the other is there to compare with."""
    limits = {"max_length": loaded.max_length, **limits}
    return InflightEngine(deepcopy(loaded.model), loaded.tokenizer, EngineLimits(**limits))


def request(prompt_ids: Sequence[int], *, group: str = "job", seed: int = 0, sample: int = 0, **params: Any) -> Request:
    return Request(group, list(prompt_ids), SamplingParams(**params), seed=seed, sample=sample)


def run(engine: Any, requests: Sequence[Request]) -> list[Completion]:
    """All completions, in order; every request is waiting before the first step."""
    futures = [engine.submit(one) for one in requests]
    while engine.step():
        pass
    return [future.result(timeout=0) for future in futures]


def trickle(engine: InflightEngine, mixes: Iterable[Sequence[Request]], rng: random.Random) -> list[Completion]:
    """All completions, in order; each mix arrives some steps after the one before, and rows have to make room."""
    futures = []
    for mix in mixes:
        futures += [engine.submit(one) for one in mix]
        for _ in range(rng.randrange(10)):
            engine.step()
        if rng.random() < 0.2 and (rows := [*engine.scheduler]):
            engine.scheduler.put_back(rng.choice(rows))
    while engine.step():
        pass
    return [future.result(timeout=0) for future in futures]


def generate_alone(loaded: LoadedModel, prompt_ids: Sequence[int], max_tokens: int) -> list[int]:
    """The tokens of the model's own greedy ``generate``, the one that ends the text included."""
    ids = torch.tensor([list(prompt_ids)])
    eos = loaded.tokenizer.eos_id
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    tokens: list[int] = out[0, len(prompt_ids) :].tolist()
    return tokens


def random_prompt(rng: random.Random, length: int, vocabulary: int = 400) -> list[int]:
    return [rng.randrange(FIRST_TEXT_ID, vocabulary) for _ in range(length)]


def random_request(rng: random.Random, *, longest_prompt: int = 30, longest_output: int = 8) -> Request:
    """A prompt and sampling settings of any kind."""
    return request(
        random_prompt(rng, rng.randint(1, longest_prompt)),
        group=rng.choice("abc"),
        seed=rng.getrandbits(63),
        sample=rng.randrange(3),
        max_tokens=rng.randint(1, longest_output),
        temperature=rng.choice([0.0, 0.0, 0.4, 1.0, 1.7]),
        top_p=rng.choice([1.0, 1.0, 0.3, 0.9]),
        top_k=rng.choice([0, 0, 1, 5, 1000]),
        min_p=rng.choice([0.0, 0.0, 0.2]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
        logprobs=rng.choice([True, False]),
    )


def transformers_filters(params: SamplingParams) -> LogitsProcessorList:
    """What ``generate`` itself would apply for these parameters."""
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature and params.temperature != 1:
        chain.append(TemperatureLogitsWarper(params.temperature))
    if params.temperature and params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.temperature and params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.temperature and params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    return chain


@torch.no_grad()
def logits_alone(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits [len(ids), V] of one unpadded pass over ``ids``."""
    logits: torch.Tensor = model(torch.tensor([list(ids)]), use_cache=False).logits[0].float()
    return logits


def assert_chosen_alone(model: Any, asked: Request, completion: Completion) -> None:
    """Every token of ``completion`` is the one that the model alone, transformers' filters and the row's draw give."""
    prompt, tokens = asked.prompt_ids, completion.token_ids
    assert completion.error_code is None
    assert tokens
    logits = logits_alone(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    filters = transformers_filters(asked.params)
    for position, token in enumerate(tokens):
        seen = torch.tensor([[*prompt, *tokens[:position]]])
        scores = filters(
            cast(torch.LongTensor, seen), cast(torch.FloatTensor, logits[position : position + 1].clone())
        )[0]
        expected, margin = _choice(scores, asked, position)
        if expected != token:
            assert margin < NEAR_TIE, f"token {position} is {token}, alone it is {expected} (margin {margin:.2g})"
            return


def _choice(scores: torch.Tensor, asked: Request, position: int) -> tuple[int, float]:
    """The token to choose, and how far the choice is from another one."""
    if not asked.params.temperature:
        best, second = scores.topk(2).values.tolist()
        return int(scores.argmax()), best - second
    cumulated = scores.double().softmax(-1).cumsum(-1)
    uniform = float(uniforms([asked.seed], [asked.sample], [position])[0])
    margin = (cumulated - uniform).abs().min().item()
    return int((cumulated > uniform).nonzero()[0]), margin


def assert_varied(completions: Sequence[Completion]) -> None:
    """The model does not say the same whatever it is asked; otherwise no comparison means anything."""
    tokens = [token for completion in completions for token in completion.token_ids]
    assert len(set(tokens)) > len(tokens) ** 0.5
