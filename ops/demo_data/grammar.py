"""Makes up products and writes copy for them: the training corpus of the demo model.

Everything comes from `phrases.toml` and a seeded random generator. Names and features are composed of words and
of invented syllables, so that the model has to learn to copy them from its prompt instead of remembering them.
Which phrase is used is mostly a function of the prompt (tone, category and the digits of the price): greedy
generation then varies from product to product instead of settling on the one most frequent phrase.
"""

from __future__ import annotations

import random
import string
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
#: Share of phrases chosen freely instead of by the prompt's digits: what sampling at a temperature draws on.
FREE_CHOICE = 0.15
#: Share of products with scrambled words, and of the words that are scrambled in them. Without these the model
#: copies only words like those of the phrase book, and stumbles over pieces of words that it rarely met.
SCRAMBLED_PRODUCTS, SCRAMBLED_WORDS = 0.6, 0.35


def load_template() -> str:
    """The prompt template as promptmill uses it: without the file's last newline."""
    return (HERE / "template.txt").read_text(encoding="utf-8").removesuffix("\n")


def load_phrases() -> dict[str, Any]:
    return tomllib.loads((HERE / "phrases.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Product:
    name: str
    category: str
    features: str
    tone: str
    price: str

    def prompt(self, template: str) -> str:
        return template.format(**asdict(self))


def join(parts: list[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


class Grammar:
    """Draws products and writes their copy.

    `forbidden` are names and features it must never make up; `pieces` are what scrambled words are made of, none
    if it is empty (a tokenizer's entries: the model then learns to copy every one of them).
    """

    def __init__(self, rng: random.Random, forbidden: Collection[str] = (), pieces: Sequence[str] = ()) -> None:
        self.pieces = pieces
        self.rng = rng
        self.forbidden = {text.casefold() for text in forbidden}
        phrases = load_phrases()
        self.tones: dict[str, dict[str, list[str]]] = phrases["tones"]
        self.categories: dict[str, dict[str, list[str]]] = {
            name: {key: text.split(";") for key, text in lists.items()} for name, lists in phrases["categories"].items()
        }
        self.names: dict[str, list[str]] = {key: text.split() for key, text in phrases["names"].items()}
        self.parts: dict[str, list[str]] = {
            key: text.split() for key, text in phrases["features"].items() if key != "tails"
        }
        self.parts["tails"] = [tail.strip() for tail in phrases["features"]["tails"].split("|")]

    def product(self) -> Product:
        category = self.rng.choice(list(self.categories))
        self.scrambling = bool(self.pieces) and self.rng.random() < SCRAMBLED_PRODUCTS
        count = self.rng.choice((1, 2, 2, 2, 2, 2, 3, 3, 3))
        features = [self._allowed(self._feature, category) for _ in range(count)]
        return Product(
            name=self._allowed(self._name, category),
            category=category,
            features=", ".join(features),
            tone=self.rng.choice(list(self.tones)),
            price=f"{int(10 ** self.rng.uniform(0.7, 3.1))}.{self.rng.randrange(10)}{self.rng.choice('005')}",
        )

    def copy(self, product: Product) -> str:
        """One to three sentences that name the product, its features and its price."""
        units, tenths = int(product.price.split(".")[0][-1]), int(product.price.split(".")[1][0])
        tone, category = self.tones[product.tone], self.categories[product.category]
        features = product.features.split(", ")
        opener = self._keyed(tone["openers"], units)
        if len(features) == 1 and "{rest}" in opener:
            opener = tone["openers"][0]
        sentences = [
            opener.format(n=product.name, f=join(features), first=features[0], rest=join(features[1:] or [""])),
            self._keyed(tone["closers"], units // 2).format(
                s=self._keyed(category["scenes"], tenths % 5), p=product.price
            ),
        ]
        if len(features) < 3:
            sentences.insert(1, self._keyed(category["benefits"], tenths // 2))
        return " ".join(sentences)

    def _keyed(self, phrases: list[str], key: int) -> str:
        return self.rng.choice(phrases) if self.rng.random() < FREE_CHOICE else phrases[key]

    def _allowed(self, make: Callable[[str], str], category: str) -> str:
        while True:
            text = make(category)
            if self.scrambling:
                text = " ".join(self._scrambled(word) for word in text.split(" "))
            if text.casefold() not in self.forbidden:
                return text

    def _scrambled(self, word: str) -> str:
        """The word, or another one of some random pieces."""
        rng = self.rng
        if rng.random() > SCRAMBLED_WORDS:
            return word
        made = "".join(rng.choices(self.pieces, k=rng.choice((1, 2, 2, 3, 4))))
        return f"{made}-{rng.choice(self.pieces)}" if rng.random() < 0.15 else made

    def _name(self, category: str) -> str:
        noun, word, draw = self.rng.choice(self.categories[category]["nouns"]), self._word, self.rng.random()
        if draw < 0.30:
            return f"{word()} {noun}"
        if draw < 0.60:
            return f"{word()} {word()} {noun}"
        if draw < 0.72:
            return f"{self.rng.choice(self.names['heads'])} {word()} {noun}"
        if draw < 0.80:
            return f"{word()} {self.rng.choice(self.names['numbers'])} {noun}"
        if draw < 0.85:
            return f"{word()} and {word()} {noun}"
        if draw < 0.90:
            return f"{word()} {word()} {word()} {noun}"
        if draw < 0.95:
            return f"{word()}-{word()} {noun}"
        return f"{word()} {word()}"

    def _word(self) -> str:
        """A capitalised word, known or invented."""
        draw = self.rng.random()
        if draw < 0.45:
            return self.rng.choice(self.names["words"])
        if draw < 0.55:
            return self.rng.choice(self.names["people"])
        return self._invented().capitalize()

    def _invented(self) -> str:
        word = self.rng.choice(self.names["starts"])
        if self.rng.random() < 0.25:
            word += self.rng.choice("aeiou") + self.rng.choice("bdlmnrst")
        if self.rng.random() < 0.05:
            word += self.rng.choice(self.names["accents"])
        return word + self.rng.choice(self.names["ends"])

    def _feature(self, category: str) -> str:
        """A noun phrase with its article, in lower case and without a comma."""
        own, parts, rng = self.categories[category], self.parts, self.rng
        countable = rng.random() < 0.6
        pools = (own["count"], parts["count"]) if countable else (own["mass"], parts["mass"])
        phrase = rng.choice(rng.choice(pools))
        phrase = f"{self._modifier()} {phrase}" if rng.random() < 0.85 else phrase
        if countable:
            phrase = f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
        elif rng.random() < 0.2:
            phrase = f"{rng.choice(self.names['numbers']).lower()} {phrase}"
        return f"{phrase} {self._tail(own)}" if rng.random() < 0.4 else phrase

    def _tail(self, own: dict[str, list[str]]) -> str:
        rng, draw = self.rng, self.rng.random()
        if draw < 0.70:
            return rng.choice(self.parts["tails"])
        if draw < 0.80:
            return f"and {rng.choice(own['mass'])}"
        if draw < 0.90:
            return f"{rng.choice(('from', 'for', 'in', 'at', 'with'))} {self._word()}"
        return f"of {rng.choice((rng.randrange(2, 200), round(rng.uniform(1, 9), 1)))}"

    def _modifier(self) -> str:
        parts, rng, draw = self.parts, self.rng, self.rng.random()
        if draw < 0.35:
            return rng.choice(parts["adjectives"])
        if draw < 0.60:
            return rng.choice(parts["materials"])
        if draw < 0.72:
            return f"{rng.choice(parts['adjectives'])} {rng.choice(parts['materials'])}"
        if draw < 0.80:
            return f"{rng.randrange(2, 400)}-{rng.choice(parts['measures'])}"
        if draw < 0.90:
            return f"{self._invented()}-{rng.choice(('style', 'cut', 'made', 'free', 'proof', 'tested'))}"
        if draw < 0.95:
            return self._invented()
        if draw < 0.975:
            return self._invented().capitalize()
        return "".join(rng.choices(string.ascii_uppercase, k=rng.randrange(2, 5)))
