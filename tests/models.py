"""Small random models with real tokenizers, made on the spot: no download, a few hundred kB, loaded like any
other.

Weights are drawn with ``initializer_range`` 0.25: with the default, a tiny model repeats one token whatever
it is fed, and a broken engine would pass every comparison of tokens.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

KINDS = ("gpt2", "llama", "qwen2", "mistral", "gemma2", "opt", "gpt_neox", "bloom", "mamba")

#: Kinds that the in-flight engine serves besides: all but the last two of KINDS have attention that it can replace.
MORE_KINDS = ("qwen3", "qwen3_moe", "gemma3_text", "phi3", "olmo2", "smollm3", "stablelm", "gpt_oss")

#: Kinds whose tokenizer marks spaces as sentencepiece does, so that decoding a suffix alone loses a leading space.
METASPACE_KINDS = frozenset({"llama", "mistral", "gemma2", "gemma3_text", "phi3"})

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

_CORPUS = (
    "write a short product description for the red canvas bag with two pockets",
    "the lamp is warm and quiet, made of oak, and it fits on every small desk",
    "user: what is the price of this bottle? assistant: it is twelve, and it keeps tea hot",
    "a light jacket for rain and wind; the colour is dark blue, the size is large",
) * 4

_HIDDEN, _LAYERS, _HEADS = 64, 2, 4


def tiny_model(
    kind: str,
    folder: Path,
    *,
    chat: bool = False,
    seed: int = 0,
    max_length: int = 512,
    **config: Any,
) -> Path:
    """A random model of ``kind`` and its tokenizer, saved into ``folder``, which is returned.

    ``kind`` is one of KINDS or MORE_KINDS. ``chat`` adds CHAT_TEMPLATE; ``max_length`` is the context length;
    ``config`` overrides the model's configuration (for example ``sliding_window=8``).
    """
    tokenizer = tiny_tokenizer(metaspace=kind in METASPACE_KINDS)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    settings = {**_config(kind, max_length), **_token_ids(tokenizer), "vocab_size": len(tokenizer), **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    _save(model, tokenizer, folder)
    return folder


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    # transformers draws its progress bars on stderr, also for one file.
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        transformers_logging.enable_progress_bar()


def tiny_tokenizer(*, metaspace: bool = False, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A trained BPE tokenizer that encodes any text: GPT-2's kind, or with ``metaspace`` Llama's."""
    tokenizer = Tokenizer.from_str(_trained(metaspace, vocab_size))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _trained(metaspace: bool, vocab_size: int) -> str:
    special = ["<unk>", "<s>", "</s>"]
    if metaspace:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return _special_tokens_only(tokenizer.to_str(), keep=3)


def _special_tokens_only(serialized: str, keep: int) -> str:
    """``serialized`` with the first ``keep`` added tokens: byte tokens are in the vocabulary, and are not special."""
    content = json.loads(serialized)
    content["added_tokens"] = content["added_tokens"][:keep]
    return json.dumps(content)


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def _config(kind: str, max_length: int) -> dict[str, Any]:
    decoder = {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "intermediate_size": 2 * _HIDDEN,
        "max_position_embeddings": max_length,
        "initializer_range": 0.25,
    }
    grouped = {**decoder, "num_key_value_heads": 2}
    dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    gemma = {**grouped, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16, "pad_token_id": 0}
    mixture = {"num_experts_per_tok": 2, "head_dim": 16}
    configs: dict[str, dict[str, Any]] = {
        "gpt2": {
            "n_embd": _HIDDEN,
            "n_layer": _LAYERS,
            "n_head": _HEADS,
            "n_positions": max_length,
            "initializer_range": 0.25,
        },
        "llama": grouped,
        "qwen2": grouped,
        "qwen3": {**grouped, "head_dim": 16},
        "qwen3_moe": {**grouped, **mixture, "num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True},
        "phi3": {**grouped, "pad_token_id": 0},
        "olmo2": {**grouped, "pad_token_id": 0},
        # Of the two layers one is without rotary positions.
        "smollm3": {**grouped, "pad_token_id": 0, "no_rope_layers": [1, 0]},
        "stablelm": {**grouped, "partial_rotary_factor": 0.25},
        # One layer with a window, one without, and attention sinks in both.
        "gpt_oss": {**grouped, **mixture, "num_local_experts": 4, "sliding_window": 16, "pad_token_id": 0},
        "mistral": {**grouped, "sliding_window": None},
        "gemma2": {**gemma, "tie_word_embeddings": False},
        "gemma3_text": {**gemma, "tie_word_embeddings": False, "layer_types": ["sliding_attention", "full_attention"]},
        "opt": {
            "hidden_size": _HIDDEN,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "ffn_dim": 2 * _HIDDEN,
            "max_position_embeddings": max_length,
            "word_embed_proj_dim": _HIDDEN,
            "init_std": 0.25,
            "pad_token_id": 1,
        },
        "gpt_neox": {**decoder, **dropout},
        "bloom": {
            "hidden_size": _HIDDEN,
            "n_layer": _LAYERS,
            "n_head": _HEADS,
            "initializer_range": 0.25,
            "seq_length": max_length,
            "tie_word_embeddings": False,
            **dropout,
        },
        "mamba": {
            "hidden_size": _HIDDEN,
            "num_hidden_layers": _LAYERS,
            "state_size": 8,
            "initializer_range": 0.25,
            "tie_word_embeddings": False,
        },
    }
    if kind not in configs:
        raise ValueError(f"no tiny model of kind {kind!r}: one of {', '.join(KINDS + MORE_KINDS)}")
    return configs[kind]
