"""What is generated: requests with a stop length each, the same for every contender. No torch.

Lengths are quantiles of their distribution, not draws from it, so that few requests have the same spread as
many; the seed decides which prompt length meets which output length, and in which order the requests stand. The
token ids are new in every round while the lengths stay: no cache that outlives a round can spare work.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from math import exp, log
from statistics import NormalDist

#: The first ids of a vocabulary are often special tokens.
_FIRST_ID = 3

#: Of the logarithm of a length on `mixed`. With it a batch of 32 in input order is about five times as long as
#: its mean row, as in real jobs of mixed prompts.
_SIGMA = 0.8
_SHORTEST, _LONGEST = 4, 256


@dataclass(frozen=True)
class Request:
    prompt_ids: list[int]
    #: How many tokens to generate, exactly: nothing stops earlier.
    output_tokens: int


@dataclass(frozen=True)
class Lengths:
    prompt: int
    output: int

    @property
    def total(self) -> int:
        return self.prompt + self.output


@dataclass(frozen=True)
class Workload:
    name: str
    rows: tuple[Lengths, ...]
    seed: int
    #: Tokens that all prompts begin with.
    shared_prefix: int = 0

    @property
    def prompt_tokens(self) -> int:
        return sum(row.prompt for row in self.rows)

    @property
    def output_tokens(self) -> int:
        return sum(row.output for row in self.rows)

    @property
    def digest(self) -> str:
        """Names the lengths: measurements of different lengths must not be compared."""
        rows = [(row.prompt, row.output) for row in self.rows]
        return sha256(repr((self.shared_prefix, rows)).encode()).hexdigest()[:12]

    def requests(self, vocabulary: int, round_: int) -> list[Request]:
        """The requests of one round, with token ids in [3, vocabulary)."""
        ids = random.Random(f"{self.name} {self.seed} {round_}")
        prefix = _random_ids(ids, self.shared_prefix, vocabulary)
        return [
            Request(prefix + _random_ids(ids, row.prompt - self.shared_prefix, vocabulary), row.output)
            for row in self.rows
        ]


def workload(name: str, requests: int, seed: int) -> Workload:
    """One of WORKLOADS with so many requests."""
    order = random.Random(f"{name} {seed}")
    prompts, outputs, shared_prefix = _KINDS[name](requests)
    order.shuffle(prompts)
    order.shuffle(outputs)
    rows = tuple(Lengths(prompt, output) for prompt, output in zip(prompts, outputs, strict=True))
    return Workload(name, rows, seed, shared_prefix)


def _random_ids(ids: random.Random, count: int, vocabulary: int) -> list[int]:
    return [ids.randrange(_FIRST_ID, vocabulary) for _ in range(count)]


def _quantiles(count: int) -> list[float]:
    return [(i + 0.5) / count for i in range(count)]


def _evenly(shortest: int, longest: int, count: int) -> list[int]:
    """Lengths of the uniform distribution over [shortest, longest]."""
    return [shortest + int((longest - shortest + 1) * quantile) for quantile in _quantiles(count)]


def _log_normal(mean: float, count: int) -> list[int]:
    """Lengths of a log-normal distribution with this mean before they are cut to [4, 256]."""
    # The mean of exp(N(mu, sigma^2)) is exp(mu + sigma^2 / 2).
    normal = NormalDist(log(mean) - _SIGMA**2 / 2, _SIGMA)
    lengths = (round(exp(normal.inv_cdf(quantile))) for quantile in _quantiles(count))
    return [min(max(length, _SHORTEST), _LONGEST) for length in lengths]


_Lengths = tuple[list[int], list[int], int]

_KINDS: dict[str, Callable[[int], _Lengths]] = {
    # Cutting at 256 takes a token or two off these means: about 61 in and 71 out remain.
    "mixed": lambda count: (_log_normal(62, count), _log_normal(73, count), 0),
    "uniform": lambda count: ([48] * count, [48] * count, 0),
    "shared-prefix": lambda count: ([150 + own for own in _evenly(20, 60, count)], [32] * count, 150),
    "long-prompt": lambda count: (_evenly(256, 400, count), _evenly(8, 16, count), 0),
    "short-prompt": lambda count: (_evenly(4, 16, count), _evenly(96, 128, count), 0),
}

WORKLOADS = tuple(_KINDS)

#: What the workloads are called for people.
TITLES = {"long-prompt": "long-prompt short-answer", "short-prompt": "short-prompt long-answer"}
