"""Trains the demo's model from nothing, on text that `grammar.py` makes up.

    python ops/demo_data/train.py --minutes 25 --out ops/demo_data/model

The corpus holds pairs of a prompt (`template.txt` filled with an invented product) and its copy. No name of
`products.csv` is in it, and none of its features as a whole, so what the model writes about those products is
generated, not recalled. The loss is taken on the copy alone. At the end the model is reloaded as it was saved and
checked on products.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from grammar import HERE, Grammar, Product, load_template
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

END, PAD = "<|endoftext|>", "<|pad|>"
VOCAB, HIDDEN, LAYERS, HEADS, INNER, POSITIONS = 3072, 128, 4, 4, 352, 512
IGNORED = -100  # cross_entropy's mark for a position without loss
Pair = tuple[list[int], int]  # token ids of prompt, copy and END; where the copy starts


def load_products() -> list[Product]:
    with (HERE / "products.csv").open(encoding="utf-8", newline="") as file:
        return [Product(**{k: v for k, v in row.items() if k != "id"}) for row in csv.DictReader(file)]


def make_corpus(
    count: int, seed: int, products: list[Product], pieces: Sequence[str] = ()
) -> list[tuple[Product, str]]:
    """Pairs of an invented product and its copy, none with a name or a feature of `products`."""
    forbidden = {text for p in products for text in (p.name, *p.features.split(", "))}
    grammar = Grammar(random.Random(seed), forbidden, pieces)
    return [(product, grammar.copy(product)) for product in (grammar.product() for _ in range(count))]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE; each digit is a token of its own so that prices are copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The tokenizer's entries that are letters, without a leading space."""
    texts = {tokenizer.decode([index]).strip() for index in range(tokenizer.get_vocab_size())}
    return sorted(text for text in texts if text.isalpha() and len(text) < 8)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Raises KeyError for a token that the tokenizer lacks."""
    return tokenizer.get_vocab()[token]


def encode(tokenizer: Tokenizer, corpus: list[tuple[Product, str]], template: str) -> list[Pair]:
    """Prompt and copy are encoded apart, as they are when the model is used."""
    end = token_id(tokenizer, END)
    prompts = tokenizer.encode_batch([product.prompt(template) for product, _ in corpus])
    copies = tokenizer.encode_batch([copy for _, copy in corpus])
    return [([*p.ids, *c.ids, end], len(p.ids)) for p, c in zip(prompts, copies, strict=True)]


def batches(pairs: list[Pair], size: int, pad: int, rng: random.Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input ids, labels), both [size, longest]; rows of similar length together, to pad little."""
    while True:
        rng.shuffle(pairs)
        for start in range(0, len(pairs) - 16 * size + 1, 16 * size):
            group = sorted(pairs[start : start + 16 * size], key=lambda pair: len(pair[0]))
            for offset in rng.sample(range(0, len(group), size), 16):
                yield collate(group[offset : offset + size], pad)


def collate(pairs: list[Pair], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in pairs)
    inputs = torch.full((len(pairs), width), pad)
    labels = torch.full((len(pairs), width), IGNORED)
    for row, (ids, start) in enumerate(pairs):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return inputs, labels


def loss_of(model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the copy. Padding is on the right, so causal attention never sees it."""
    hidden = model.model(inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != IGNORED
    return F.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    end, pad = token_id(tokenizer, END), token_id(tokenizer, PAD)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=POSITIONS,
        # Wider than usual: at this width the default keeps attention flat for the first hundreds of steps.
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)
    return model


def learning_rate(peak: float, step: int, progress: float) -> float:
    """A warmup of 60 steps, then a cosine from `peak` to a fiftieth of it; `progress` runs from 0 to 1."""
    return peak * min(1, (step + 1) / 60) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def train(model: LlamaForCausalLM, pairs: list[Pair], pad: int, args: argparse.Namespace) -> int:
    """AdamW over the time (or the steps) given. Returns the steps made."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    started, step, seen, running = time.monotonic(), 0, 0, 0.0
    for inputs, labels in batches(pairs, args.batch, pad, random.Random(args.seed)):
        elapsed = time.monotonic() - started
        progress = step / args.steps if args.steps else elapsed / (60 * args.minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 60) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)
        loss = loss_of(model, inputs, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + inputs.numel()
        running = loss.item() if step == 1 else 0.95 * running + 0.05 * loss.item()
        if step % 100 == 0:
            rate = seen / (time.monotonic() - started)
            print(f"{progress:4.0%}  step {step}  loss {running:.3f}  {rate:,.0f} tokens/s", flush=True)
    return step


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """In half precision: the model is small enough to be kept beside the code."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )
    model.half().save_pretrained(out)
    fast.save_pretrained(out)
    config = out / "tokenizer_config.json"
    # transformers 5 writes its own new name for this class, which transformers 4 does not know; both know this one.
    settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=2) + "\n")


def write_copy(path: Path, products: list[Product], batch: int = 32) -> tuple[list[tuple[str, bool]], float]:
    """Greedy copy of each product and whether it ended by itself within 80 tokens; and tokens a second."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    template, tokens, started = load_template(), 0, time.monotonic()
    written: list[tuple[str, bool]] = []
    for start in range(0, len(products), batch):
        prompts = [product.prompt(template) for product in products[start : start + batch]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model.generate(**inputs, max_new_tokens=80, do_sample=False)[:, inputs.input_ids.shape[1] :]
        ended = (output == tokenizer.eos_token_id).any(dim=1).tolist()
        tokens += int((output != tokenizer.pad_token_id).sum())
        written += zip(tokenizer.batch_decode(output, skip_special_tokens=True), ended, strict=True)
    return written, tokens / (time.monotonic() - started)


def check(path: Path, products: list[Product]) -> dict[str, float]:
    """What the saved model does on products.csv, as shares of its rows."""
    written, rate = write_copy(path, products)
    tokenizer, rows = AutoTokenizer.from_pretrained(path), len(products)
    lengths = sorted(len(tokenizer(text).input_ids) + 1 for text, _ in written)
    pairs = [(p, text) for p, (text, _) in zip(products, written, strict=True)]
    for product, text in pairs[:: max(1, rows // 20)]:
        print(f"- {product.name}: {text}")
    return {
        "rows": rows,
        "names_product": sum(p.name in text for p, text in pairs) / rows,
        "names_all_features": sum(all(f in text for f in p.features.split(", ")) for p, text in pairs) / rows,
        "names_price": sum(p.price in text for p, text in pairs) / rows,
        "ends": sum(ended for _, ended in written) / rows,
        "ends_within_60": sum(length <= 60 for length in lengths) / rows,
        "distinct": len({text for text, _ in written}) / rows,
        "median_tokens": lengths[rows // 2],
        "longest_tokens": lengths[-1],
        "tokens_per_s": round(rate),
    }


def start_new(seed: int, products: list[Product]) -> tuple[Tokenizer, LlamaForCausalLM]:
    template = load_template()
    corpus = make_corpus(20_000, seed, products)
    tokenizer = train_tokenizer([product.prompt(template) + copy for product, copy in corpus])
    return tokenizer, new_model(tokenizer)


def start_from(path: Path) -> tuple[Tokenizer, LlamaForCausalLM]:
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    return Tokenizer.from_file(str(path / "tokenizer.json")), model


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the demo's model.")
    parser.add_argument("--out", type=Path, default=HERE / "model")
    parser.add_argument("--start", type=Path, help="go on from the model in this folder")
    parser.add_argument("--minutes", type=float, default=25, help="training time; the schedule follows the clock")
    parser.add_argument("--steps", type=int, help="instead of --minutes: a fixed number of steps, for repeatable runs")
    # One: for matrices this small, threads that wait for each other cost more than they bring.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--check-only", action="store_true", help="check the model in --out, train nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    products, template, steps = load_products(), load_template(), 0
    if not args.check_only:
        tokenizer, model = start_from(args.start) if args.start else start_new(args.seed, products)
        corpus = make_corpus(args.examples, args.seed, products, pieces_of(tokenizer))
        pairs = encode(tokenizer, corpus, template)
        print(f"{len(pairs)} examples, {sum(len(ids) for ids, _ in pairs) / len(pairs):.0f} tokens each", flush=True)
        steps = train(model, pairs, token_id(tokenizer, PAD), args)
        save(model, tokenizer, args.out)
    result = {
        "steps": steps,
        "bytes": sum(f.stat().st_size for f in args.out.iterdir()),
        **check(args.out, products),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
