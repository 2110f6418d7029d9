"""How rows end and what is said of them, whichever way their batches are made."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from engine_work import engine_for, inflight_for, logits_alone, random_prompt, request, run

from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]
Engine = Callable[..., Any]


@pytest.fixture
def llama(tiny: Tiny) -> LoadedModel:
    return tiny("llama")


@pytest.fixture(params=[inflight_for, engine_for], ids=["in flight", "padded"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """What makes an engine of a model and limits."""
    made: Engine = request.param
    return made


def test_max_tokens_ends_a_row_by_length(llama: LoadedModel, engine: Engine) -> None:
    four, one = run(engine(llama), [request([5, 6, 7], max_tokens=4), request([5], max_tokens=1)])

    assert (four.finish_reason, len(four.token_ids), four.prompt_tokens) == ("length", 4, 3)
    assert (one.finish_reason, len(one.token_ids), one.prompt_tokens) == ("length", 1, 1)
    assert four.started_at <= four.finished_at
    assert four.text == llama.tokenizer.decode(four.token_ids)


def test_the_context_cuts_max_tokens_and_refuses_longer_prompts(tiny: Tiny, engine: Engine) -> None:
    loaded, rng = tiny("gpt2", max_length=32), random.Random(1)

    answers = run(
        engine(loaded, max_length=10_000),
        [request(random_prompt(rng, length), max_tokens=500, seed=1) for length in (28, 31, 32, 90)],
    )

    assert [len(answer.token_ids) for answer in answers] == [4, 1, 0, 0]
    assert [answer.finish_reason for answer in answers] == ["length", "length", "error", "error"]
    assert [answer.error_code for answer in answers] == [None, None, "prompt_too_long", "prompt_too_long"]
    assert answers[3].error_message == "the prompt has 90 tokens; the model takes at most 31"


def test_ids_outside_of_the_vocabulary_and_empty_prompts_are_refused(llama: LoadedModel, engine: Engine) -> None:
    made = engine(llama)

    answers = run(made, [request(ids) for ids in ([5, 400], [-1], [])])

    assert [answer.error_code for answer in answers] == ["tokenizer_error", "tokenizer_error", "empty_prompt"]
    assert made.rows_in_hand == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_text_ends_exactly_before_a_stop_string_wherever_token_borders_are(
    tiny: Tiny, kind: str, engine: Engine
) -> None:
    loaded = tiny(kind)
    made, prompt = engine(loaded), loaded.tokenizer.encode("write a short description")
    row: dict[str, Any] = {"max_tokens": 40, "temperature": 1.0, "seed": 3}
    whole = run(made, [request(prompt, **row)])[0].text
    stops = {whole[at : at + length] for at in range(len(whole)) for length in (1, 2, 5, 9)}
    # Half of a character is no text that a user could ask to stop at.
    asked = sorted(stop for stop in stops if stop and "\ufffd" not in stop)

    answers = run(made, [request(prompt, **row, stop=("never seen", stop)) for stop in asked])

    assert len(asked) > 20
    for stop, answer in zip(asked, answers, strict=True):
        assert answer.text == whole[: whole.index(stop)]
        assert answer.finish_reason == "stop"
        assert stop in loaded.tokenizer.decode(answer.token_ids)
        assert stop not in loaded.tokenizer.decode(answer.token_ids[:-1])


def test_a_special_token_can_be_a_stop_string(tiny: Tiny, engine: Engine) -> None:
    loaded = tiny("qwen2")
    asked = [request([10 + i], max_tokens=60, temperature=1.5, seed=i, stop=("<s>",)) for i in range(30)]

    answers = run(engine(loaded), asked)

    ended = [answer for answer in answers if answer.token_ids[-1] == loaded.tokenizer.special_ids["<s>"]]
    assert ended
    assert all(answer.finish_reason == "stop" and "<s>" not in answer.text for answer in ended)


def test_the_end_token_is_counted_and_not_shown(llama: LoadedModel, engine: Engine) -> None:
    asked = [request([10 + i], max_tokens=60, temperature=1.5, seed=i) for i in range(30)]

    ended = [answer for answer in run(engine(llama), asked) if answer.finish_reason == "stop"]

    assert ended
    for answer in ended:
        assert answer.token_ids[-1] == llama.tokenizer.eos_id
        assert llama.tokenizer.eos_id not in answer.token_ids[:-1]
        assert "</s>" not in answer.text


def test_mean_logprob_is_that_of_the_unmodified_distribution(llama: LoadedModel, engine: Engine) -> None:
    asked = request([8, 9, 10], max_tokens=12, temperature=0.5, top_k=3, seed=4, logprobs=True)
    silent = request([8, 9, 10], max_tokens=12, temperature=0.5, top_k=3, seed=4)

    answer, unasked = run(engine(llama), [asked, silent])

    logits = logits_alone(llama.model, [8, 9, 10, *answer.token_ids])[2:-1]
    chosen = logits.log_softmax(-1)[range(len(answer.token_ids)), answer.token_ids]
    assert answer.mean_logprob == pytest.approx(chosen.mean().item(), abs=1e-4)
    assert unasked.mean_logprob is None
    assert unasked.token_ids == answer.token_ids
