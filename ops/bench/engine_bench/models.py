"""The models: shapes as published, weights random, made on the spot. torch is only imported to make one."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Linear:
    """A weight [outputs, inputs], and how many of its shape the model has."""

    inputs: int
    outputs: int
    count: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.inputs, self.outputs


@dataclass(frozen=True)
class ModelShape:
    """A decoder with one kind of layer. ``kind`` is the model type of transformers: ``gpt2`` or ``llama``."""

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    context: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def layer_linears(self) -> tuple[Linear, ...]:
        """The linear layers of all decoder layers, by shape, as the published modules have them."""
        hidden, wide, n = self.hidden, self.intermediate, self.layers
        if self.kind == "gpt2":
            return Linear(hidden, 3 * hidden, n), Linear(hidden, hidden, n), *_mlp(hidden, wide, n, n)
        keys = self.kv_heads * self.head_dim
        # Queries and output are both [hidden, hidden]; gate and up are both [wide, hidden].
        return Linear(hidden, hidden, 2 * n), Linear(hidden, keys, 2 * n), *_mlp(hidden, wide, 2 * n, n)

    @property
    def head(self) -> Linear:
        return Linear(self.hidden, self.vocabulary, 1)


def _mlp(hidden: int, wide: int, ups: int, downs: int) -> tuple[Linear, Linear]:
    return Linear(hidden, wide, ups), Linear(wide, hidden, downs)


MODELS = {
    # GPT-2 small.
    "gpt2": ModelShape("gpt2", 768, 12, 12, 12, 3072, 50257, 1024),
    # About 100 million parameters in the shape of a Llama: gated MLP, RMS norm, rotary positions, grouped queries.
    "llama": ModelShape("llama", 768, 12, 12, 4, 2048, 32000, 2048),
    # For tests and first looks: seconds instead of minutes, and no figure to publish.
    "tiny": ModelShape("gpt2", 64, 2, 4, 4, 128, 500, 512),
    "tiny-llama": ModelShape("llama", 64, 2, 4, 2, 128, 500, 512),
}


def model_shape(name: str, layers: int | None = None) -> ModelShape:
    return replace(MODELS[name], layers=layers) if layers else MODELS[name]


def make_model(shape: ModelShape, folder: Path, seed: int) -> None:
    """Write a model with random float32 weights and a tokenizer to ``folder``, as ``from_pretrained`` reads them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    quiet_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # No token ends a text: a stop that a model chooses by chance would change the work.
        config = AutoConfig.for_model(shape.kind, **_config(shape), bos_token_id=None, eos_token_id=None)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    _write_tokenizer(shape.vocabulary, folder)


def quiet_transformers() -> None:
    """It draws progress bars and gives advice, which a benchmark has no use for; errors are raised all the same."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity(logging.CRITICAL)


def _config(shape: ModelShape) -> dict[str, Any]:
    if shape.kind == "gpt2":
        return {
            "vocab_size": shape.vocabulary,
            "n_positions": shape.context,
            "n_embd": shape.hidden,
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "n_inner": shape.intermediate,
        }
    return {
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "tie_word_embeddings": True,
    }


def _write_tokenizer(vocabulary: int, folder: Path) -> None:
    """A vocabulary in which every id is a token of its own, its number: CTranslate2 takes tokens, not ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({str(token): token for token in range(vocabulary)}, unk_token="0")
    special = {"unk_token": "0", "bos_token": "1", "eos_token": "2"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(folder)
    # transformers would look for the tokenizer class of the model's type, which needs other files.
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))
