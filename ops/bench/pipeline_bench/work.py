"""The model and the prompts, made on the spot."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline_bench.records import Prompts

#: GPT-2's shape, but for the vocabulary: hidden size, layers, heads, tokens. 0.1, 14, 30 and 91 million parameters.
MODELS = {"tiny": (64, 2, 4, 512), "mini": (384, 6, 6, 8192), "small": (512, 8, 8, 8192), "gpt2": (768, 12, 12, 8192)}
#: Tokens of prompt and output together.
CONTEXT = 512


def make_model(name: str, folder: Path, seed: int) -> list[str]:
    """Write a model and its tokenizer as ``from_pretrained`` reads them; words that the tokenizer knows.

    Written without transformers, the import of which takes longer than everything here.
    """
    hidden, layers, heads, vocabulary = MODELS[name]
    # No token ends a text.
    config = {
        "model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": heads, "vocab_size": vocabulary,
        "n_positions": CONTEXT, "bos_token_id": None, "eos_token_id": None, "dtype": "float32",
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(hidden, layers, vocabulary, seed), folder / "model.safetensors", {"format": "pt"})
    words = make_words(vocabulary // 2)
    write_tokenizer(words, vocabulary, folder)
    return words


def random_weights(hidden: int, layers: int, vocabulary: int, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """The weights of transformers' GPT2LMHeadModel, drawn as it draws them: N(0, 0.02), biases 0, norms 1."""
    chance = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (vocabulary, hidden), "wpe.weight": (CONTEXT, hidden)}
    for layer in range(layers):
        products = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden),
                    "mlp.c_fc": (hidden, 4 * hidden), "mlp.c_proj": (4 * hidden, hidden)}  # fmt: skip
        for part, (inputs, outputs) in products.items():
            shapes[f"h.{layer}.{part}.weight"] = inputs, outputs
            shapes[f"h.{layer}.{part}.bias"] = (outputs,)
    weights = {
        name: np.zeros(shape, np.float32)
        if name.endswith("bias")
        else chance.standard_normal(shape, np.float32) * np.float32(0.02)
        for name, shape in shapes.items()
    }
    for norm in (*(f"h.{layer}.{part}" for layer in range(layers) for part in ("ln_1", "ln_2")), "ln_f"):
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)
    return {f"transformer.{name}": weight for name, weight in weights.items()}


def make_words(count: int) -> list[str]:
    """Different words of two syllables."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    words = ["".join(pair) for pair in product(syllables, repeat=2)]
    return random.Random(0).sample(words, count)


def write_tokenizer(words: Sequence[str], vocabulary: int, folder: Path) -> None:
    """A byte-level BPE, GPT-2's kind, that has most of ``words`` as one token, and no token that ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(["", *words])], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_prompts(path: Path, words: Sequence[str], rows: int, seed: str) -> Prompts:
    """``rows`` prompts of 10 to 60 words. All files of as many rows ask for the same numbers of tokens, shuffled."""
    chance = random.Random(seed)
    # Quantiles, not draws: few rows have the same spread as many.
    normal = NormalDist(math.log(24), 0.6)
    limits = [min(max(round(math.exp(normal.inv_cdf((i + 0.5) / rows))), 4), 128) for i in range(rows)]
    chance.shuffle(limits)
    with path.open("w") as file:
        for i, limit in enumerate(limits):
            prompt = " ".join(chance.choices(words, k=chance.randint(10, 60)))
            file.write(json.dumps({"id": f"row-{i}", "prompt": prompt, "max_tokens": limit}) + "\n")
    return Prompts(path, limits)
