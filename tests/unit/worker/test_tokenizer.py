"""Prompts to ids, and ids to the text that belongs after the prompt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jobs.spec import RowError
from tests.models import tiny_tokenizer
from worker.engine.text import StopFinder, cut_at_stop
from worker.models import LoadedModel
from worker.tokenizer import PromptTokenizer, TokenizeError

Tiny = Callable[..., LoadedModel]

TEXTS = ["the red bag", " two  spaces", "tea\nand\n\nwind ", "Zürich 漢字 🙂!", "a", " "]


@pytest.fixture(params=[False, True], ids=["byte level", "metaspace"])
def tokenizer(request: pytest.FixtureRequest) -> PromptTokenizer:
    return PromptTokenizer(tiny_tokenizer(metaspace=request.param))


@pytest.mark.parametrize("text", TEXTS)
def test_any_cut_of_the_ids_gives_a_prompt_and_the_text_after_it(tokenizer: PromptTokenizer, text: str) -> None:
    ids = tokenizer.encode("write" + text)

    for at in range(1, len(ids)):
        left, right = tokenizer.decode(ids[:at]), tokenizer.decode(ids[at:])
        if "\ufffd" not in left + right:  # the cut is not within a character
            assert left.lstrip() + right == "write" + text


def test_a_leading_space_of_the_generated_text_is_kept() -> None:
    raw = tiny_tokenizer(metaspace=True)
    ids = raw("write a short", add_special_tokens=False).input_ids
    second_word = next(i for i in range(1, len(ids)) if raw.convert_ids_to_tokens(ids[i]).startswith("▁"))
    assert raw.decode(ids[second_word:]) == "a short", "the trap that this test is about"

    assert PromptTokenizer(raw).decode(ids[second_word:]) == " a short"


def test_special_tokens_are_not_text(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.eos_id is not None
    ids = tokenizer.encode("tea")

    assert tokenizer.decode([*ids, tokenizer.eos_id]) == tokenizer.decode(ids)
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    assert tokenizer.special_ids["</s>"] == tokenizer.eos_id


def test_spaces_before_punctuation_stay() -> None:
    tokenizer = PromptTokenizer(tiny_tokenizer())

    assert tokenizer.decode(tokenizer.encode("tea , wind ! it 's")) == "tea , wind ! it 's"


def test_the_empty_prompt_is_refused(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(TokenizeError, match="the prompt is empty") as refused:
        tokenizer.encode("")
    assert refused.value.code is RowError.EMPTY_PROMPT


def test_what_the_tokenizer_cannot_take_is_a_tokenizer_error(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(TokenizeError) as refused:
        tokenizer.encode("a lone surrogate \ud800")
    assert refused.value.code is RowError.TOKENIZER_ERROR


def test_long_prompts_are_not_cut_and_not_warned_about(tokenizer: PromptTokenizer) -> None:
    tokenizer._tokenizer.model_max_length = 16

    assert len(tokenizer.encode("tea " * 500)) >= 500


class TestChats:
    @pytest.fixture
    def chat(self, tiny: Tiny) -> PromptTokenizer:
        return tiny("gpt2", chat=True).tokenizer

    def test_messages_are_rendered_by_the_models_template_up_to_the_answer(self, chat: PromptTokenizer) -> None:
        ids = chat.render([{"role": "system", "content": "be brief"}, {"role": "user", "content": "tea?"}])

        assert chat.decode(ids) == "system: be brief\nuser: tea?\nassistant:"

    def test_a_model_without_a_template_says_so(self, tokenizer: PromptTokenizer) -> None:
        with pytest.raises(TokenizeError, match="no chat template") as refused:
            tokenizer.render([{"role": "user", "content": "tea?"}])
        assert refused.value.code is RowError.TOKENIZER_ERROR

    @pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": 5}, {"role": "system"}])
    def test_a_template_that_refuses_is_a_template_error(self, message: dict[str, Any]) -> None:
        raw = tiny_tokenizer()
        raw.chat_template = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
            "{{ m['content'] + '' }}{% endfor %}"
        )
        with pytest.raises(TokenizeError, match="template refused") as refused:
            PromptTokenizer(raw).render([message])
        assert refused.value.code is RowError.TEMPLATE_ERROR

    def test_special_tokens_of_the_template_are_not_doubled(self) -> None:
        raw = tiny_tokenizer()
        raw.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

        ids = PromptTokenizer(raw).render([{"role": "user", "content": "tea"}])

        assert ids.count(raw.bos_token_id) == 1


def test_threads_can_share_a_tokenizer(tokenizer: PromptTokenizer) -> None:
    want = {text: tokenizer.encode(text * 50) for text in TEXTS}
    failures: list[object] = []

    def work() -> None:
        for text in TEXTS * 10:
            try:
                ids = tokenizer.encode(text * 50)
                tokenizer.decode(ids)
                if ids != want[text]:
                    failures.append(text)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures


class TestStopFinder:
    @pytest.mark.parametrize("stop", ["漢字", "字 a", " and", "\n\n", "🙂"])
    def test_a_stop_string_is_found_with_the_token_that_completes_it(
        self, tokenizer: PromptTokenizer, stop: str
    ) -> None:
        ids = tokenizer.encode("write " + "tea and \n\n" * 3 + "漢字 and 漢字 a 🙂 b")
        finder = StopFinder((stop, "never"), tokenizer.decode)

        found = next(count for count, token in enumerate(ids, start=1) if finder.push(token))

        assert stop in tokenizer.decode(ids[:found])
        assert stop not in tokenizer.decode(ids[: found - 1])

    def test_the_first_of_several_stop_strings_cuts(self) -> None:
        assert cut_at_stop("one two three", ("three", "two")) == "one "
        assert cut_at_stop("one two three", ("four",)) is None
