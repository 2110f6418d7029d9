"""Left padding, and whether a model can bear it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

log = logging.getLogger(__name__)

#: Of the spread of the logits, how much other company may move them: rounding does, attending to the wrong tokens
#: moves them far more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.15}

#: The names under which configurations keep the context length.
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")

#: The check pads a prompt of the first length to the second, and then goes on for some steps.
_CHECK_LENGTHS, _CHECK_STEPS = (3, 19), 4


def take_over_generation(model: Any, tokenizer_eos: int | None) -> frozenset[int]:
    """Clear the model's own generation settings and return the token ids that end a text.

    ``generate`` fills what it is not told from ``model.generation_config``: a folder that sets top_k, a
    repetition penalty or forced tokens there would change the results of every row.
    """
    ids = getattr(model.generation_config, "eos_token_id", None)
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    if ids is None:
        ids = tokenizer_eos
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def plain_generation(max_new_tokens: int, pad_id: int) -> GenerationConfig:
    """Settings with which ``generate`` takes the best token of the scores it is given, and never stops by itself."""
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, pad_token_id=pad_id, use_cache=True
    )


def context_of(config: Any) -> int | None:
    """Tokens of prompt and output together that the model takes, if its configuration says.

    Of a model that computes something else for all rows of a batch once one of them is longer (LongRoPE's frequencies,
    Phi-3's; the chunks of Llama 4, which only a mask can tell): the length up to which it does not.
    """
    text_config = config.get_text_config()
    lengths = (getattr(text_config, name, None) for name in _LENGTHS)
    context = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if context is None or (most := _length_of_one_kind(text_config)) is None or most >= context:
        return context
    log.warning("prompt and output may have %d tokens together, not %d: beyond, rows change each other", most, context)
    return most


def _length_of_one_kind(config: Any) -> int | None:
    rope = getattr(config, "rope_parameters", None) or {}
    # Models whose layers differ have parameters for each kind of layer.
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    lengths = [
        kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        lengths.append(getattr(config, "attention_chunk_size", None))
    return min((length for length in lengths if isinstance(length, int)), default=None)


def usable_pad_id(tokenizer_pad: int, eos_ids: frozenset[int], vocabulary: int) -> int:
    """A token to pad with. Tokenizers may name one that the model has no embedding for, such as Qwen's own default."""
    return next((token for token in (tokenizer_pad, *sorted(eos_ids)) if 0 <= token < vocabulary), 0)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both int64 [B, longest], with every prompt ending in the last column."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids.to(device), mask.to(device)


def is_harmless(model: Any, pad_id: int) -> bool:
    """Whether ``model`` computes the same for a prompt alone and padded beside a longer one.

    Found out by running both, for a prefill and some decode steps: position ids, masks, sliding windows and
    recurrent states are all in it, and no list of model names has to be kept.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    short, long = (torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in _CHECK_LENGTHS)
    try:
        alone = _logits(model, [short], pad_id)[0]
        padded = _logits(model, [short, long], pad_id)[0]
    except Exception as error:
        log.warning("no padding: the model failed on a padded batch (%s: %s)", type(error).__name__, error)
        return False
    moved = ((padded - alone).norm() / (alone - alone.mean()).norm()).item()
    if moved <= TOLERANCE.get(model.dtype, 0.05):  # False for NaN
        return True
    log.warning("no padding: it moves the model's logits by %.3g; only prompts of one length share a batch", moved)
    return False


def _logits(model: Any, prompts: list[list[int]], pad_id: int) -> Tensor:
    """Logits [B, steps, V] of a prefill and the decode steps after it, all rows fed the same tokens."""
    recorder = _Recorder()
    ids, mask = pad_left(prompts, pad_id, model.device)
    model.generate(
        ids,
        attention_mask=mask,
        generation_config=plain_generation(_CHECK_STEPS, pad_id),
        logits_processor=LogitsProcessorList([recorder]),
    )
    return torch.stack(recorder.logits, dim=1)


class _Recorder(LogitsProcessor):
    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.logits.append(scores.float().clone())
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, (7 * len(self.logits)) % scores.shape[-1]] = 0.0
        return chosen
