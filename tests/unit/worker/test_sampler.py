"""The sampler: transformers' filters, and draws that depend on nothing but their key."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from engine_work import transformers_filters

from jobs.spec import SamplingParams
from worker.engine.sampler import Sampler, draw, only, uniforms

CPU = torch.device("cpu")


def sampler(params: list[SamplingParams], prompts: list[list[int]] | None = None) -> Sampler:
    count = len(params)
    return Sampler(params, list(range(count)), [0] * count, prompts or [[1]] * count, CPU)


def settings() -> list[SamplingParams]:
    """Every combination of some values of every filter."""
    values = itertools.product([0.3, 1.0, 2.5], [1.0, 0.5, 0.95], [0, 1, 7, 5000], [0.0, 0.05, 1.0], [1.0, 1.4])
    return [
        SamplingParams(temperature=t, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=penalty)
        for t, top_p, top_k, min_p, penalty in values
    ]


def test_filtered_distributions_are_those_of_transformers_row_by_row() -> None:
    params = settings()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(params), 500, generator=generator) * 3
    prompts = [torch.randint(0, 500, (9,), generator=generator).tolist() for _ in params]
    ours = sampler(params, prompts)

    got = ours.filtered(ours._penalise(logits)).softmax(-1)

    for row, one in enumerate(params):
        scores = transformers_filters(one)(torch.tensor([prompts[row]]), logits[row : row + 1].clone())
        assert torch.equal(got[row] > 0, scores[0].softmax(-1) > 0), one
        torch.testing.assert_close(got[row], scores[0].softmax(-1), rtol=1e-5, atol=1e-7)


def test_the_repetition_penalty_also_counts_what_was_generated() -> None:
    params = [SamplingParams(repetition_penalty=10.0), SamplingParams()]
    ours = sampler(params, prompts=[[0], [0]])
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)

    chosen = [ours(logits, position).tokens for position in range(3)]

    assert chosen == [[1, 0], [2, 0], [3, 0]]


def test_uniforms_depend_on_every_part_of_the_key_and_are_uniform() -> None:
    keys = list(itertools.product([0, 1, 2**63 - 1], range(4), range(2000)))
    seeds, samples, positions = map(np.array, zip(*keys, strict=True))

    drawn = uniforms(seeds, samples, positions)

    assert len(set(drawn.tolist())) == len(keys)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(np.sort(drawn) - np.linspace(0, 1, len(keys))).max() < 0.02  # Kolmogorov-Smirnov at 1e-5
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


def test_uniforms_are_the_same_for_ever() -> None:
    """Stored seeds must give the same text in later versions."""
    # Worked out in plain Python integers.
    assert uniforms([0, 42, 2**63 - 1], [0, 1, 2], [0, 7, 999]).tolist() == [
        0.13870941014555427,
        0.10584086659863745,
        0.45206908413331426,
    ]


def test_a_draw_takes_the_first_token_beyond_the_uniform_and_never_a_filtered_one() -> None:
    inf = torch.inf
    logits = torch.tensor([[-inf, 0.0, -inf, 0.0, -inf]]).repeat(5, 1)

    tokens = draw(logits, np.array([0.0, 0.49, 0.5, 0.99, 1.0]))

    assert tokens.tolist() == [1, 1, 3, 3, 3]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    count = 20_000
    params = [SamplingParams(temperature=1.0)] * count

    tokens = torch.tensor(sampler(params)(logits.repeat(count, 1), 0).tokens)

    shares = torch.bincount(tokens, minlength=4) / count
    torch.testing.assert_close(shares, logits.softmax(-1), atol=0.015, rtol=0)


def test_rows_without_a_distribution_are_told_apart_and_leave_the_others_alone() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(1))
    params = [SamplingParams(temperature=1.0, top_p=0.9, logprobs=True)] * 5
    want = sampler(params)(logits, 0)
    broken = logits.clone()
    broken[1, 7] = torch.nan
    broken[2, 7] = torch.inf
    broken[3] = -torch.inf

    got = sampler(params)(broken, 0)

    assert got.bad == [False, True, True, True, False]
    assert (got.tokens[0], got.tokens[4]) == (want.tokens[0], want.tokens[4])
    assert want.logprobs is not None
    assert got.logprobs is not None
    assert got.logprobs[4] == want.logprobs[4]


def test_a_vanishing_temperature_is_greedy_and_a_huge_one_is_no_overflow() -> None:
    logits = torch.tensor([[1.0, 1e4, -1e4]] * 2)
    params = [SamplingParams(temperature=1e-300), SamplingParams(temperature=1e-5)]

    assert sampler(params)(logits, 0).tokens == [1, 1]


def test_only_leaves_one_possible_token_a_row() -> None:
    scores = only([2, 0], torch.randn(2, 4))

    assert scores.argmax(-1).tolist() == [2, 0]
    assert (scores > -torch.inf).sum().item() == 2
