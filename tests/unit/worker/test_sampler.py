"""The sampler: rows come and go, and their draws depend on nothing but their key."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from engine_work import request

from worker.engine.distribution import draw
from worker.engine.sampler import Choice, Sampler, only, uniforms

CPU = torch.device("cpu")


class Asked:
    """A row, as the sampler sees it."""

    def __init__(self, prompt: Sequence[int] = (1,), seed: int = 0, **params: Any) -> None:
        self.request = request(prompt, seed=seed, **params)
        self.token_ids: list[int] = []


def choose(logits: torch.Tensor, rows: Sequence[Asked], position: int = 0) -> Choice:
    return Sampler(CPU).choose(logits, rows, [position] * len(rows)).on_host()


def mixed_rows(rng: random.Random, count: int, vocabulary: int) -> list[Asked]:
    """Rows that want any mix of everything."""
    return [
        Asked(
            [rng.randrange(vocabulary) for _ in range(rng.randint(1, 9))],
            seed=rng.getrandbits(63),
            temperature=rng.choice([0.0, 0.4, 1.0, 1.7]),
            top_p=rng.choice([1.0, 1.0, 0.3, 0.9]),
            top_k=rng.choice([0, 0, 1, 5, 1000]),
            min_p=rng.choice([0.0, 0.0, 0.2]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
            logprobs=rng.choice([True, False]),
        )
        for _ in range(count)
    ]


class TestRepetitionPenalty:
    def test_it_counts_the_prompt_and_what_was_generated_before_the_host_has_heard_of_it(self) -> None:
        rows = [Asked([0], repetition_penalty=10.0), Asked([0])]
        logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
        sampler = Sampler(CPU)

        chosen = [sampler.choose(logits, rows, [position] * 2).on_host().tokens for position in range(3)]

        assert chosen == [[1, 0], [2, 0], [3, 0]]

    def test_negative_logits_are_pushed_down_too(self) -> None:
        logits = torch.tensor([[-1.0, -1.5, -3.0]])

        assert choose(logits, [Asked([0], repetition_penalty=1.4)]).tokens == [0]
        assert choose(logits, [Asked([0], repetition_penalty=1.6)]).tokens == [1]

    def test_a_penalty_that_leads_beyond_the_numbers_is_the_fault_of_its_row(self) -> None:
        logits = torch.tensor([[1.0, 2.0, 3.0]] * 3)
        rows = [Asked([0]), Asked([0], repetition_penalty=1e-300), Asked([0], repetition_penalty=2.0)]

        assert choose(logits, rows).bad == [False, True, False]

    def test_a_row_that_was_begun_elsewhere_brings_its_tokens(self) -> None:
        row = Asked([0], repetition_penalty=10.0)
        row.token_ids = [1, 2]

        assert choose(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), [row], position=2).tokens == [3]

    def test_a_row_that_was_begun_elsewhere_and_lacks_tokens_is_refused(self) -> None:
        row = Asked([0], repetition_penalty=10.0)
        row.token_ids = [1]

        with pytest.raises(ValueError, match="1 of the row's 2 tokens"):
            choose(torch.zeros(1, 4), [row], position=2)

    def test_a_forgotten_row_begins_again(self) -> None:
        row, sampler = Asked([0], repetition_penalty=10.0), Sampler(CPU)
        logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        chosen = [sampler.choose(logits, [row], [position]).on_host().tokens[0] for position in range(2)]
        sampler.forget(row)
        again = [sampler.choose(logits, [row], [position]).on_host().tokens[0] for position in range(2)]

        assert chosen == again == [1, 2]

    def test_forgotten_rows_leave_their_memory_to_others(self) -> None:
        sampler = Sampler(CPU)
        logits = torch.zeros(5, 100)
        sizes = []
        for _ in range(30):
            rows = [Asked([7], repetition_penalty=1.5) for _ in range(5)]
            sampler.choose(logits, rows, [0] * 5)
            sizes.append(sampler._memory.seen.numel())
            for row in rows:
                sampler.forget(row)
                sampler.forget(row)

        assert sizes[0] == sizes[-1]

    def test_more_rows_than_there_is_memory_for_get_more(self) -> None:
        rows = [Asked([i], repetition_penalty=10.0) for i in range(40)]
        logits = torch.eye(40) + 5
        sampler = Sampler(CPU)
        for count in (3, 20, 40):
            tokens = sampler.choose(logits[:count], rows[:count], [0] * count).on_host().tokens
            assert all(token != i for i, token in enumerate(tokens))


@pytest.mark.parametrize("vocabulary", [300, 9001])
def test_rows_that_enter_leave_and_change_places_get_the_tokens_that_they_get_alone(vocabulary: int) -> None:
    rng, steps = random.Random(vocabulary), 12
    rows = mixed_rows(rng, 24, vocabulary)
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(len(rows), steps, vocabulary, generator=generator) * 4
    alone = []
    for i, row in enumerate(rows):
        own = Sampler(CPU)
        alone.append([own.choose(logits[i, at : at + 1], [row], [at]).on_host() for at in range(steps)])

    together, chosen = Sampler(CPU), [list[Choice]() for _ in rows]
    while unfinished := [i for i in range(len(rows)) if len(chosen[i]) < steps]:
        now = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        for _ in range(rng.randint(1, 3)):
            now = [i for i in now if len(chosen[i]) < steps]
            positions = [len(chosen[i]) for i in now]
            if not now:
                break
            choice = together.choose(logits[now, positions], [rows[i] for i in now], positions).on_host()
            for place, i in enumerate(now):
                # The host hears of a token one step late.
                rows[i].token_ids = [one.tokens[0] for one in chosen[i]]
                logprobs = choice.logprobs if rows[i].request.params.logprobs else None
                chosen[i].append(Choice([choice.tokens[place]], logprobs and [logprobs[place]], [choice.bad[place]]))
        if rng.random() < 0.3:
            i = rng.choice(now or unfinished)
            rows[i].token_ids = [one.tokens[0] for one in chosen[i]]
            together.forget(rows[i])

    for got, want in zip(chosen, alone, strict=True):
        assert [one.tokens for one in got] == [one.tokens for one in want]
        assert [one.logprobs for one in got] == [one.logprobs and pytest.approx(one.logprobs) for one in want]
    assert len({token for row in chosen for one in row for token in one.tokens}) > 100


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
    weights = torch.tensor([[0.0, 3.0, 0.0, 3.0, 0.0]]).repeat(5, 1)

    tokens = draw(weights, torch.tensor([0.0, 0.49, 0.5, 0.99, 1.0], dtype=torch.float64))

    assert tokens.tolist() == [1, 1, 3, 3, 3]


def test_a_draw_finds_its_token_among_many_blocks_of_nothing() -> None:
    weights = torch.zeros(4, 3001)
    weights[:, [256, 700, 2999]] = torch.tensor([1.0, 2.0, 1.0])

    tokens = draw(weights, torch.tensor([0.0, 0.25, 0.749, 0.75], dtype=torch.float64))

    assert tokens.tolist() == [256, 700, 700, 2999]


#: Every way of choosing.
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 50},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
    {"temperature": 1.0, "min_p": 0.1, "repetition_penalty": 1.2},
    {"repetition_penalty": 1.2},
]


@pytest.mark.parametrize("vocabulary", [30, 9001])
@pytest.mark.parametrize("params", WAYS)
def test_rows_without_a_distribution_are_told_apart_and_leave_the_others_alone(
    params: dict[str, Any], vocabulary: int
) -> None:
    logits = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    rows = [Asked([3], seed=i, logprobs=True, **params) for i in range(6)]
    want = choose(logits, rows)
    broken = logits.clone()
    broken[1, 7] = torch.nan
    broken[2, 7] = torch.inf
    broken[3] = -torch.inf
    broken[4] = -torch.nan

    got = choose(broken, rows)

    assert got.bad == [False, True, True, True, True, False]
    assert all(0 <= token < vocabulary for token in got.tokens)
    assert (got.tokens[0], got.tokens[5]) == (want.tokens[0], want.tokens[5])
    assert want.logprobs is not None
    assert got.logprobs is not None
    assert got.logprobs[5] == want.logprobs[5]


def test_tokens_that_the_model_rules_out_are_no_fault_of_the_row() -> None:
    logits = torch.full((2, 50), -torch.inf)
    logits[:, 20] = -3.0

    got = choose(logits, [Asked(), Asked(temperature=1.0, top_p=0.5)])

    assert got.bad == [False, False]
    assert got.tokens == [20, 20]


def test_of_equally_good_tokens_greedy_takes_the_first() -> None:
    logits = torch.zeros(3, 5000)
    logits[0, [4999, 77]] = 1.0
    logits[1, [4990, 4980]] = 1.0

    assert choose(logits, [Asked(), Asked(), Asked(temperature=1e-300)]).tokens == [77, 4980, 0]


def test_a_vanishing_temperature_is_greedy_and_a_huge_one_is_no_overflow() -> None:
    logits = torch.tensor([[1.0, 1e4, -1e4]] * 2)

    assert choose(logits, [Asked(temperature=1e-300), Asked(temperature=1e-5)]).tokens == [1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_float_type_are_taken(dtype: torch.dtype) -> None:
    rows = mixed_rows(random.Random(5), 30, 400)
    # Halves of -20 to 20 are the same in all of these types.
    logits = torch.randint(-40, 40, (30, 400), generator=torch.Generator().manual_seed(2)) / 2

    assert choose(logits.to(dtype), rows).tokens == choose(logits, rows).tokens


def test_logprobs_are_those_of_the_unmodified_distribution_for_the_rows_that_asked() -> None:
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(3))
    rows = [Asked(logprobs=True, temperature=0.3, top_k=2), Asked(), Asked([5], logprobs=True, repetition_penalty=9.0)]

    got = choose(logits, rows)

    assert got.logprobs is not None
    want = logits.log_softmax(-1)[range(3), got.tokens]
    assert [got.logprobs[0], got.logprobs[2]] == pytest.approx([want[0].item(), want[2].item()])
    assert np.isnan(got.logprobs[1])
    assert choose(logits, [Asked() for _ in rows]).logprobs is None


def test_choosing_never_waits_for_the_device() -> None:
    """On the meta device there are no values: whoever looks at one fails."""
    meta = torch.device("meta")
    sampler, rows = Sampler(meta), mixed_rows(random.Random(4), 40, 9001)
    logits = torch.empty(40, 9001, dtype=torch.bfloat16, device=meta)

    for position in range(2):
        chosen = sampler.choose(logits, rows, [position] * 40)
        sampler.forget(rows[position])
        rows[position].token_ids = [0]

    assert (chosen.tokens.shape, chosen.tokens.dtype) == ((40,), torch.int64)
    assert (chosen.bad.shape, chosen.bad.dtype) == ((40,), torch.bool)
    with pytest.raises(NotImplementedError):
        chosen.on_host()


def test_only_leaves_one_possible_token_a_row() -> None:
    scores = only([2, 0], torch.randn(2, 4))

    assert scores.argmax(-1).tolist() == [2, 0]
    assert (scores > -torch.inf).sum().item() == 2
