"""The model and the prompts, made on the spot. torch is only imported to make a model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import NormalDist

from pipeline_bench.records import Prompts

#: GPT-2's shape, but for the vocabulary: hidden size, layers, heads, tokens. 0.1, 30 and 91 million parameters.
MODELS = {"tiny": (64, 2, 4, 512), "small": (512, 8, 8, 8192), "gpt2": (768, 12, 12, 8192)}
#: Tokens of prompt and output together.
CONTEXT = 512


def make_model(name: str, folder: Path, seed: int) -> list[str]:
    """Write a model and its tokenizer as ``from_pretrained`` reads them; words that the tokenizer knows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hidden, layers, heads, vocabulary = MODELS[name]
    words = make_words(vocabulary // 2)
    write_tokenizer(words, vocabulary, folder)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "gpt2", n_embd=hidden, n_layer=layers, n_head=heads, vocab_size=vocabulary, n_positions=CONTEXT,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    return words


def make_words(count: int) -> list[str]:
    """Different words of two syllables."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    words = ["".join(pair) for pair in product(syllables, repeat=2)]
    return random.Random(0).sample(words, count)


def write_tokenizer(words: Sequence[str], vocabulary: int, folder: Path) -> None:
    """A byte-level BPE, GPT-2's kind, that has most of ``words`` as one token, and no token that ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(["", *words])], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)  # type: ignore[no-untyped-call]
    # transformers would look for the tokenizer class of the model's type.
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}))


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
