"""What the sampler draws has the distribution that transformers' own processors leave."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from engine_work import request, transformers_filters
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spec import SamplingParams
from worker.engine import distribution
from worker.engine.distribution import Filters
from worker.engine.request import Request
from worker.engine.sampler import Sampler, uniforms

CPU = torch.device("cpu")

#: Large enough for the sampler to look at the best blocks of columns first.
LARGE = 9001

#: A draw this close to an edge of the distribution may take either token, and so may a share of the mass this close to
#: what top_p or min_p ask for: float32 is no more exact.
NEAR_DRAW, NEAR_SHARE = 1e-4, 1e-6

Floats = npt.NDArray[np.float64]


@dataclass(eq=False)
class Asked:
    request: Request
    token_ids: Sequence[int] = ()


def draws(logits: torch.Tensor, params: SamplingParams, prompt: list[int], seeds: int, positions: int) -> list[int]:
    """One token for each of many seeds at each of many positions, from the same logits [V]."""
    rows = [Asked(Request("job", prompt, params, seed=seed)) for seed in range(seeds)]
    tokens: list[int] = []
    for position in range(positions):
        for row in rows:
            row.token_ids = prompt[:1] * position
        # A sampler of its own for each, or the repetition penalty would remember what the draws before it took.
        chosen = Sampler(CPU).choose(logits.expand(seeds, -1), rows, [position] * seeds)
        tokens += chosen.on_host().tokens
    return tokens


def left_by_transformers(logits: torch.Tensor, params: SamplingParams, prompt: list[int]) -> torch.Tensor:
    """Probabilities [V], float64."""
    seen = torch.LongTensor([prompt])
    return transformers_filters(params)(seen, torch.FloatTensor(logits[None].clone()))[0].double().softmax(-1)


def chi_square_limit(freedom: int) -> float:
    """What a chi-square variable exceeds once in a million (Wilson & Hilferty, 1931)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 4.75 * math.sqrt(part)) ** 3


@pytest.mark.parametrize("vocabulary", [80, LARGE])
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 0.9, "top_k": 20},
        {"temperature": 1.5, "top_k": 700},
        {"temperature": 0.7, "top_p": 0.8},
        {"temperature": 2.0, "top_p": 0.95},
        {"temperature": 1.0, "top_k": 30, "top_p": 0.7},
        {"temperature": 1.2, "min_p": 0.02},
        {"temperature": 2.5, "min_p": 0.001},
        {"temperature": 0.8, "repetition_penalty": 1.5},
        {"temperature": 1.1, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_thousands_of_draws_fit_what_the_processors_of_transformers_leave(
    params: dict[str, Any], vocabulary: int
) -> None:
    asked = SamplingParams(**params)
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(7)) * 2
    prompt = logits.topk(3).indices.tolist()
    want = left_by_transformers(logits, asked, prompt).numpy()

    tokens = np.array(draws(logits, asked, prompt, seeds=250, positions=16))

    assert (want[tokens] > 0).all()
    # Tokens of few expected draws share a cell: the approximation needs about five in each.
    order = np.argsort(want)
    expected = want[order] * len(tokens)
    cells = np.minimum(np.floor(expected.cumsum() / 8).astype(int), int(expected.sum() // 8) - 1)
    observed = np.bincount(tokens, minlength=vocabulary)[order]
    wanted = np.bincount(cells, expected)
    filled = wanted > 0
    statistic = ((np.bincount(cells, observed) - wanted)[filled] ** 2 / wanted[filled]).sum()
    assert filled.sum() > 3
    assert statistic < chi_square_limit(int(filled.sum()) - 1)


@pytest.mark.parametrize("scale", [3.0, 0.2], ids=["peaked", "flat"])
def test_the_best_blocks_alone_give_the_draws_that_all_columns_give(scale: float) -> None:
    """Whether a row is drawn from few columns or from all depends on the row; what it draws does not."""
    kinds: list[dict[str, Any]] = [
        {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        for top_k, top_p, min_p in itertools.product([0, 1, 60, 128, 129, 900], [1.0, 0.2, 0.9], [0.0, 0.3])
        if top_k or top_p < 1 or min_p
    ]
    rows = [SamplingParams(temperature=1.0, **kind) for kind in kinds for _ in range(4)]
    generator = torch.Generator().manual_seed(3)
    # Quarters: many ties, at the edges of the blocks too.
    logits = (torch.randn(len(rows), LARGE, generator=generator) * 4).round() / 4 * scale
    uniform = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    enough = 0
    for part in ([row.top_p < 1 and not row.top_k for row in rows], [row.top_p == 1 or row.top_k > 0 for row in rows]):
        some = torch.tensor(part)
        filters = filters_of([row for row, yes in zip(rows, part, strict=True) if yes])
        temperatures = torch.ones(len(logits[some]), 1)
        enough += int(distribution._best_of(logits[some], temperatures, filters).enough.sum())

        few = distribution.draw_filtered(logits[some], temperatures, filters, uniform[some])
        all_columns = distribution.draw(distribution.keep(logits[some].softmax(-1), filters), uniform[some])

        assert few.tolist() == all_columns.tolist()
    assert 0 < enough < len(rows)


def test_top_p_is_a_share_of_all_that_top_k_leaves_though_min_p_needs_few_of_them() -> None:
    logits = torch.full((1, LARGE), -1.9)
    logits[0, 100:105] = 0.0
    # Of about 1350 in all the nucleus has 6.8: the five best of weight 1, and more that min_p cuts off.
    filters = filters_of([SamplingParams(top_k=900, top_p=0.005, min_p=0.2)])

    tokens = [
        distribution.draw_filtered(logits, torch.ones(1, 1), filters, torch.tensor([uniform], dtype=torch.float64))
        for uniform in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]

    assert [token.item() for token in tokens] == [100, 101, 102, 103, 104]


def filters_of(rows: Sequence[SamplingParams]) -> Filters:
    top_k = torch.tensor([row.top_k or math.inf for row in rows], dtype=torch.float64)
    top_p = torch.tensor([row.top_p if row.top_p < 1 else math.inf for row in rows], dtype=torch.float64)
    min_p = torch.tensor([row.min_p for row in rows])
    return Filters(
        None if top_k.isinf().all() else top_k, None if top_p.isinf().all() else top_p, min_p if min_p.any() else None
    )


def test_what_is_left_of_every_combination_of_filters_is_what_transformers_leaves() -> None:
    """One row for each combination, all in one batch."""
    values = itertools.product([0.3, 1.0, 2.5], [1.0, 0.5, 0.95], [0, 1, 7, 5000], [0.0, 0.05, 1.0], [1.0, 1.4])
    rows = [
        SamplingParams(temperature=t, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=penalty)
        for t, top_p, top_k, min_p, penalty in values
    ]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(rows), 500, generator=generator) * 3
    prompts = torch.randint(0, 500, (len(rows), 9), generator=generator)
    seen = torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, prompts, True)

    scores = distribution.penalise(logits, seen, torch.tensor([row.repetition_penalty for row in rows]))
    weights = (scores / torch.tensor([[row.temperature] for row in rows])).softmax(-1)
    got = distribution.keep(weights, filters_of(rows)).double()

    for i, row in enumerate(rows):
        want = left_by_transformers(logits[i], row, prompts[i].tolist())
        assert torch.equal(got[i] > 0, want > 0), row
        torch.testing.assert_close(got[i] / got[i].sum(), want, rtol=1e-5, atol=1e-7)


def test_ties_with_the_last_of_top_k_stay_and_top_p_keeps_as_few_as_it_needs() -> None:
    weights = torch.tensor([[1.0, 2.0, 4.0, 2.0, 2.0, 1.0]]) / 12

    by_count = distribution.keep(weights, Filters(torch.tensor([2.0], dtype=torch.float64), None, None))
    by_mass = distribution.keep(weights, Filters(None, torch.tensor([0.6], dtype=torch.float64), None))

    assert by_count.gt(0).tolist() == [[False, True, True, True, True, False]]
    assert by_mass.gt(0).tolist() == [[False, False, True, True, True, False]]


def filtered_naively(logits: Floats, params: SamplingParams, prompt: Sequence[int]) -> tuple[Floats, float]:
    """Probabilities [V] after the filters, one after the other in float64, and how near a filter's decision was."""
    scores, margin = logits.copy(), math.inf
    for token in set(prompt):
        scores[token] *= params.repetition_penalty if scores[token] < 0 else 1 / params.repetition_penalty
    weights = np.exp((scores - scores.max()) / params.temperature)
    if params.top_k:
        weights[weights < np.sort(weights)[-min(params.top_k, len(weights))]] = 0
    if params.top_p < 1:
        order = np.argsort(weights, kind="stable")
        shares = weights[order].cumsum() / weights.sum()
        removed = shares <= 1 - params.top_p
        removed[-1] = False
        margin = np.abs(shares - (1 - params.top_p)).min()
        weights[order[removed]] = 0
    if params.min_p:
        positive = weights[weights > 0]
        margin = min(margin, np.abs(positive - params.min_p).min())
        weights[weights < params.min_p] = 0
    return weights / weights.sum(), margin


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], SamplingParams, list[int], int, int]:
    """Logits, parameters, prompt, seed and position."""
    eighths = st.integers(-48, 48).map(lambda n: n / 8)
    # Few different logits make ties.
    logit = draw(st.sampled_from([eighths, st.sampled_from([-2.5, 0.0, 1.0]), st.just(-math.inf) | eighths]))
    logits = draw(st.lists(logit, min_size=1, max_size=40).filter(lambda some: max(some) > -math.inf))
    params = SamplingParams(
        temperature=draw(st.sampled_from([0.2, 0.7, 1.0, 1.6, 50.0])),
        top_k=draw(st.just(0) | st.integers(1, 45)),
        top_p=draw(st.just(1.0) | st.floats(0.01, 0.999)),
        min_p=draw(st.just(0.0) | st.floats(0.001, 1.0)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.5, 1.25, 2.0])),
    )
    prompt = draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=5))
    return logits, params, prompt, draw(st.integers(0, 2**63 - 1)), draw(st.integers(0, 5000))


@settings(max_examples=400, deadline=None)
@given(cases())
def test_any_draw_is_the_inverse_of_the_cumulated_distribution_that_transformers_leaves(
    case: tuple[list[float], SamplingParams, list[int], int, int],
) -> None:
    logits, params, prompt, seed, position = case
    want, margin = filtered_naively(np.array(logits), params, prompt)
    row = Asked(request(prompt, seed=seed, **params.model_dump(exclude={"seed"})), prompt[:1] * position)

    chosen = Sampler(CPU).choose(torch.tensor([logits]), [row], [position]).on_host()

    assert chosen.bad == [False]
    if margin > NEAR_SHARE:
        theirs = left_by_transformers(torch.tensor(logits), params, prompt).numpy()
        # Which of several ties at the edge of a nucleus stay is left open by the sort of transformers.
        np.testing.assert_allclose(np.sort(theirs), np.sort(want), atol=1e-5)
        assert want[chosen.tokens[0]] > 0
    uniform = uniforms([seed], [0], [position])[0]
    cumulated = want.cumsum()
    expected = int((cumulated > uniform * cumulated[-1]).argmax())
    if margin > NEAR_SHARE and np.abs(cumulated - uniform).min() > NEAR_DRAW:
        assert chosen.tokens[0] == expected


@settings(max_examples=400, deadline=None)
@given(cases())
def test_the_tokens_that_can_be_drawn_are_those_that_transformers_leaves(
    case: tuple[list[float], SamplingParams, list[int], int, int],
) -> None:
    logits, params, prompt, _, _ = case
    want, margin = filtered_naively(np.array(logits), params, prompt)
    seen = torch.zeros(1, len(logits), dtype=torch.bool)
    seen[0, prompt] = True

    scores = distribution.penalise(torch.tensor([logits]), seen, torch.tensor([params.repetition_penalty]))
    kept = distribution.keep((scores / params.temperature).softmax(-1), filters_of([params]))[0]
    # Every token of any weight is the one that some uniform draws: the middle of its own stretch.
    cumulated = kept.double().cumsum(-1) / kept.double().sum()
    middles = cumulated - kept.double() / kept.double().sum() / 2
    drawn = distribution.draw(kept.expand(len(middles), -1).contiguous(), middles)

    if margin > NEAR_SHARE:
        possible = np.flatnonzero(want > NEAR_SHARE)
        assert set(possible) <= set(drawn[kept > 0].tolist()) <= set(np.flatnonzero(want))
        assert drawn[possible].tolist() == possible.tolist()
