"""Choosing the next token of each row, vectorised over rows that want different things.

The filters and their order are those of transformers: repetition penalty, temperature, top_k, top_p, min_p.
The draw is ours: one uniform per row and step from a counter-based generator, and the inverse of the
cumulative distribution in order of token ids. Neither depends on the other rows, nor on what was drawn
before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.spec import SamplingParams

#: Below this, dividing by the temperature could overflow float32, and the distribution is one token anyway: greedy.
MIN_TEMPERATURE = 1e-5

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: npt.ArrayLike, samples: npt.ArrayLike, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, sample, position), the same wherever and whenever it is asked for.

    ``position`` counts the generated tokens of the row from 0. Every part of the key goes through a
    SplitMix64 step.
    """
    state: npt.NDArray[np.uint64] = np.zeros(1, dtype=np.uint64)
    for part in (seeds, samples, positions):
        # Arrays of unsigned integers wrap around silently, as the generator wants it.
        state = _mix((state ^ np.atleast_1d(np.asarray(part, dtype=np.uint64))) + _GOLDEN)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Logits [R, V] with those of ``seen`` tokens ([R, V] bool) pushed down by ``penalty`` [R].

    CTRL (Keskar et al., 2019, arXiv 1909.05858), in the form that transformers gave it.
    """
    penalty = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def filter_top(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits [R, V] with everything but the ``top_k`` [R] best and the ``top_p`` [R] nucleus at -inf.

    ``top_k`` is an int64 of 1 to V, ``top_p`` a float64 of (0, 1]. Ties with the last of the top_k stay in.
    """
    ordered, indices = torch.sort(logits, dim=-1)
    smallest = ordered.gather(-1, (logits.shape[-1] - top_k)[:, None])
    ordered = ordered.masked_fill(ordered < smallest, -torch.inf)
    removed = ordered.softmax(-1).cumsum(-1) <= (1 - top_p).to(logits.dtype)[:, None]
    removed[:, -1] = False
    # With top_p = 1, only what top_k removed has a cumulated probability of 0.
    removed |= ordered == -torch.inf
    return logits.masked_fill(torch.zeros_like(removed).scatter(-1, indices, removed), -torch.inf)


def filter_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    """Logits [R, V] with tokens less probable than ``min_p`` [R] x the best one at -inf."""
    probabilities = logits.softmax(-1)
    threshold = min_p[:, None] * probabilities.amax(-1, keepdim=True)
    removed = probabilities < threshold
    # min_p 1 and rounding must leave the best token.
    removed.scatter_(-1, probabilities.argmax(-1, keepdim=True), False)
    return logits.masked_fill(removed, -torch.inf)


def draw(filtered: Tensor, uniform: npt.NDArray[np.float64]) -> Tensor:
    """Token ids [R]: for each row of logits [R, V] the first token whose cumulated probability exceeds
    ``uniform``.

    The cumulation runs in order of token ids: unlike the order of probabilities, it cannot change
    when rounding swaps two tokens that are nearly equally probable.
    """
    wide = torch.float32 if filtered.device.type == "mps" else torch.float64
    cumulated = filtered.softmax(-1).cumsum(-1, dtype=wide)
    total = cumulated[:, -1:].contiguous()
    target = torch.as_tensor(uniform, dtype=wide, device=filtered.device)[:, None] * total
    chosen = torch.searchsorted(cumulated, target, right=True)
    # Rounding can take the target up to the total itself; the last token of any probability is then the one.
    return torch.minimum(chosen, torch.searchsorted(cumulated, total)).squeeze(-1)


@dataclass(frozen=True, slots=True)
class Choice:
    """What one step chose for the B rows of a batch."""

    tokens: list[int]
    #: Of each token under the unmodified distribution; None if no row asked for it.
    logprobs: list[float] | None
    #: Rows whose logits had NaN or no finite maximum; their tokens mean nothing.
    bad: list[bool]


class Sampler:
    """Chooses tokens for one fixed batch of rows, step by step.

    Greedy rows take the argmax; the filters are only computed for the rows that use them, and what a
    repetition penalty needs to remember is one [R, V] mask of the prompts and of what was chosen.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        samples: Sequence[int],
        prompts: Sequence[Sequence[int]],
        device: torch.device,
    ) -> None:
        self._device = device
        self._prompts = prompts
        self._seen: Tensor | None = None

        def rows_where(wanted: Sequence[bool]) -> Tensor:
            return torch.tensor([i for i, yes in enumerate(wanted) if yes], dtype=torch.int64, device=device)

        sampled = [p.temperature >= MIN_TEMPERATURE for p in params]
        self._penalised = rows_where([p.repetition_penalty != 1 for p in params])
        self._penalty = self._column([p.repetition_penalty for p in params if p.repetition_penalty != 1])
        self._sampled = rows_where(sampled)
        random = [i for i, yes in enumerate(sampled) if yes]
        self._seeds = np.array([seeds[i] for i in random], dtype=np.uint64)
        self._samples = np.array([samples[i] for i in random], dtype=np.uint64)
        self._temperature = self._column([params[i].temperature for i in random])
        # Indices below are into the sampled rows.
        truncated = [params[i].top_k > 0 or params[i].top_p < 1 for i in random]
        self._truncated = rows_where(truncated)
        cut = [params[i] for i, yes in zip(random, truncated, strict=True) if yes]
        self._top_k = torch.tensor([p.top_k for p in cut], dtype=torch.int64, device=device)
        self._top_p = torch.tensor([p.top_p for p in cut], dtype=self._exact, device=device)
        self._floored = rows_where([params[i].min_p > 0 for i in random])
        self._min_p = self._column([params[i].min_p for i in random if params[i].min_p > 0])
        self._logprobs = any(p.logprobs for p in params)

    @property
    def _exact(self) -> torch.dtype:
        return torch.float32 if self._device.type == "mps" else torch.float64

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def __call__(self, logits: Tensor, position: int) -> Choice:
        """Choose from logits [B, V]; ``position`` is the number of tokens that every row has generated."""
        logits = logits.float()
        # A NaN anywhere makes the maximum NaN; +inf and rows of nothing but -inf have no distribution either.
        bad = ~torch.isfinite(logits.amax(-1))
        usable = torch.where(bad[:, None], torch.zeros_like(logits), logits) if bool(bad.any()) else logits
        scores = self._penalise(usable)
        tokens = scores.argmax(-1)
        if self._sampled.numel():
            uniform = uniforms(self._seeds, self._samples, position)
            tokens[self._sampled] = draw(self.filtered(scores[self._sampled]), uniform)
        self._remember(tokens)
        return Choice(tokens.tolist(), self._logprobs_of(usable, tokens), bad.tolist())

    def filtered(self, scores: Tensor) -> Tensor:
        """Logits [R, V] of the sampled rows after temperature and filters."""
        scores = scores / self._temperature[:, None]
        if self._truncated.numel():
            size = scores.shape[-1]
            top_k = torch.where(self._top_k > 0, self._top_k.clamp(max=size), size)
            scores[self._truncated] = filter_top(scores[self._truncated], top_k, self._top_p)
        if self._floored.numel():
            scores[self._floored] = filter_min_p(scores[self._floored], self._min_p)
        return scores

    def _penalise(self, logits: Tensor) -> Tensor:
        if not self._penalised.numel():
            return logits
        if self._seen is None:
            self._seen = self._seen_in_prompts(logits.shape[-1])
        scores = logits.clone()
        scores[self._penalised] = penalise(logits[self._penalised], self._seen, self._penalty)
        return scores

    def _seen_in_prompts(self, vocabulary: int) -> Tensor:
        seen = torch.zeros(self._penalised.numel(), vocabulary, dtype=torch.bool)
        for i, row in enumerate(self._penalised.tolist()):
            seen[i, torch.tensor(self._prompts[row], dtype=torch.int64)] = True
        return seen.to(self._device)

    def _remember(self, tokens: Tensor) -> None:
        if self._seen is not None:
            self._seen.scatter_(1, tokens[self._penalised][:, None], True)

    def _logprobs_of(self, logits: Tensor, tokens: Tensor) -> list[float] | None:
        if not self._logprobs:
            return None
        logprobs: list[float] = logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1).tolist()
        return logprobs


def only(tokens: list[int], like: Tensor) -> Tensor:
    """Scores of the shape of ``like`` [B, V] in which each row's token is the only possible one."""
    scores = torch.full_like(like, -torch.inf)
    index = torch.tensor(tokens, dtype=torch.int64, device=like.device)[:, None]
    return scores.scatter_(1, index, 0.0)
