"""From prompts to token ids and back, by the model's own tokenizer and chat template."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from jobs.spec import RowError


class TokenizeError(Exception):
    """Raised when a prompt cannot become tokens: a fault of its row, not of the worker."""

    def __init__(self, code: RowError, message: str) -> None:
        self.code = code
        super().__init__(message)


class PromptTokenizer:
    """A transformers tokenizer for prompts and completions. May be used from any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Fast tokenizers raise "Already borrowed" when two threads meet in one.
        self._lock = threading.Lock()
        #: Text of the tokens that ``decode`` leaves out.
        self.special_ids = _special_ids(tokenizer)
        self._anchor = self._find_anchor()

    @property
    def pad_id(self) -> int:
        """What to pad with: the model never attends to it."""
        for token in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    @property
    def eos_id(self) -> int | None:
        token = self._tokenizer.eos_token_id
        return None if token is None else int(token)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def max_length(self) -> int | None:
        """The longest input that the tokenizer's own settings name, if they name a believable one."""
        length = self._tokenizer.model_max_length
        return int(length) if length and 0 < length < 10_000_000 else None

    def encode(self, prompt: str) -> list[int]:
        """The token ids of a prompt, with the special tokens that the tokenizer puts around it.

        Raises TokenizeError: ``empty_prompt``, or ``tokenizer_error`` if the tokenizer fails.
        """
        if not prompt:
            raise TokenizeError(RowError.EMPTY_PROMPT, "the prompt is empty")
        try:
            with self._lock:
                # verbose: rows that are too long for the model are reported as rows, not as warnings.
                ids = self._tokenizer(prompt, truncation=False, padding=False, verbose=False).input_ids
        except Exception as error:
            _fail(RowError.TOKENIZER_ERROR, "the tokenizer failed on the prompt", error)
        return _some(ids)

    def render(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The token ids of a chat, by the model's chat template, up to where the assistant's answer begins.

        Raises TokenizeError: ``empty_prompt`` for no messages, ``template_error`` if the template refuses
        them, ``tokenizer_error`` if the model has no template or its tokenizer fails.
        """
        if not messages:
            raise TokenizeError(RowError.EMPTY_PROMPT, "the prompt has no messages")
        if not self.has_chat_template:
            raise TokenizeError(
                RowError.TOKENIZER_ERROR, "the model has no chat template: submit plain prompts, or use a chat model"
            )
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except Exception as error:
            _fail(RowError.TEMPLATE_ERROR, "the chat template refused the messages", error)
        try:
            with self._lock:
                # The template has written the special tokens already.
                ids = self._tokenizer(
                    text, add_special_tokens=False, truncation=False, padding=False, verbose=False
                ).input_ids
        except Exception as error:
            _fail(RowError.TOKENIZER_ERROR, "the tokenizer failed on the chat", error)
        return _some(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` add after a prompt, without special tokens.

        A tokenizer of sentencepiece's kind drops a space at the start of what it decodes, although to the
        text before it the space belongs. So everything is decoded after one known token, whose text is then
        cut off.
        """
        if not ids:
            return ""
        if self._anchor is None:
            return self._decode(ids)
        anchor, prefix = self._anchor
        text = self._decode([anchor, *ids])
        return text[len(prefix) :] if text.startswith(prefix) else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        with self._lock:
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _find_anchor(self) -> tuple[int, str] | None:
        """A token that is a plain letter, and its text at the start of a decoded string."""
        for letter in "aeb1":
            with self._lock:
                ids = self._tokenizer(letter, add_special_tokens=False).input_ids
            if len(ids) and (prefix := self._decode(ids[-1:])) and self._decode(ids[-1:] * 2).startswith(prefix):
                return int(ids[-1]), prefix
        return None


def _special_ids(tokenizer: Any) -> dict[str, int]:
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    # The ends of chat turns are often special without having a name such as eos_token.
    added = ((str(token), index) for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return {text: int(index) for text, index in (*named, *added)}


def _some(ids: Any) -> list[int]:
    if not len(ids):
        raise TokenizeError(RowError.EMPTY_PROMPT, "the prompt has no tokens")
    return list(map(int, ids))


def _fail(code: RowError, what: str, error: Exception) -> NoReturn:
    first_line = next(iter(str(error).splitlines()), "")
    raise TokenizeError(code, f"{what}: {type(error).__name__}: {first_line[:300]}") from error
