"""Choosing the next token of each row, vectorised over rows that want different things.

The filters and their order are those of transformers: repetition penalty, temperature, top_k, top_p, min_p.
The draw is ours: one uniform per row and step from a counter-based generator, and the inverse of the
cumulative distribution in order of token ids. Neither depends on the other rows, nor on what was drawn
before. Rows may come and go between steps, each at its own position.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.engine.distribution import best, penalise
from worker.engine.request import Request
from worker.engine.sampling_plan import MIN_TEMPERATURE, Plan, upload

__all__ = ["MIN_TEMPERATURE", "Choice", "Chosen", "SampledRow", "Sampler", "only", "uniforms"]

#: Slots for masks that the memory of repetition penalties begins with.
_FIRST_SLOTS = 8

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


class SampledRow(Protocol):
    """What choosing a token needs of a row; ``worker.engine.row.Row`` is one. Rows are told apart by identity."""

    request: Request

    @property
    def token_ids(self) -> Sequence[int]:
        """What was generated so far, as far as the host knows."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """What one step chose for R rows."""

    tokens: list[int]
    #: Of each token under the unmodified distribution, NaN for rows that did not ask; None if none did.
    logprobs: list[float] | None
    #: Rows whose logits had NaN or no finite maximum; their tokens mean nothing.
    bad: list[bool]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A ``Choice`` on the device, which may still be at work on it."""

    #: int64 [R].
    tokens: Tensor
    #: float32 [R].
    logprobs: Tensor | None
    #: bool [R].
    bad: Tensor

    def on_host(self) -> Choice:
        """Waits for the device."""
        tokens, bad = torch.stack([self.tokens, self.bad.long()]).tolist()
        logprobs = None if self.logprobs is None else self.logprobs.tolist()
        return Choice(tokens, logprobs, [bool(one) for one in bad])


class Sampler:
    """Chooses the next tokens of rows, step by step, and never waits for the device.

    What it keeps of a row, until ``forget``, is what a repetition penalty has to remember. What it makes of the
    rows' parameters is kept for as long as the rows are the same.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = _Memory(device)
        self._rows: tuple[SampledRow, ...] = ()
        self._plan: Plan | None = None

    @torch.no_grad()
    def choose(self, logits: Tensor, rows: Sequence[SampledRow], positions: Sequence[int]) -> Chosen:
        """Choose from logits [R, V] of any float type; ``positions`` says how many tokens each row has already.

        Raises ValueError for a row with a repetition penalty that it never saw, if the host does not know all of
        its tokens yet.
        """
        plan = self._plan_for(rows, positions, logits.shape[-1])
        peaks, tokens = best(logits)
        bad = ~peaks.isfinite()
        penalised = logits
        if plan.penalised is not None:
            penalised = penalise(logits[plan.penalised].float(), self._memory.seen[plan.slots], plan.penalties)
            peaks, tokens[plan.penalised] = best(penalised)
            bad[plan.penalised] |= ~peaks.isfinite()
        if plan.groups:
            numbers = uniforms(plan.seeds, plan.samples, np.asarray(positions)[plan.drawn])
            shares = torch.split(upload(numbers, self._device), [len(group.temperatures) for group in plan.groups])
            for group, uniform in zip(plan.groups, shares, strict=True):
                tokens[group.rows] = group.draw(penalised if group.penalised else logits, uniform)
        if plan.penalised is not None:
            self._memory.seen[plan.slots, tokens[plan.penalised]] = True
        return Chosen(tokens, _logprobs(logits, tokens, plan.scored), bad)

    def forget(self, row: SampledRow) -> None:
        """Drop what is kept of a row that leaves or begins again."""
        if self._memory.drop(row):
            self._plan = None

    def _plan_for(self, rows: Sequence[SampledRow], positions: Sequence[int], vocabulary: int) -> Plan:
        if self._plan is None or len(rows) != len(self._rows) or not all(map(operator.is_, rows, self._rows)):
            requests = [row.request for row in rows]
            slots = [
                self._memory.slot_of(row, positions[i], vocabulary)
                if row.request.params.repetition_penalty != 1
                else -1
                for i, row in enumerate(rows)
            ]
            self._rows, self._plan = tuple(rows), Plan.of(requests, slots, vocabulary, self._device)
        return self._plan


class _Memory:
    """Which tokens the rows with a repetition penalty have seen: a mask [V] of bool for each, in a pool that grows."""

    def __init__(self, device: torch.device) -> None:
        #: bool [slots, V].
        self.seen = torch.empty(0, 0, dtype=torch.bool, device=device)
        self._slots: dict[SampledRow, int] = {}
        self._free: list[int] = []

    def slot_of(self, row: SampledRow, position: int, vocabulary: int) -> int:
        """The slot of the row's mask; for a row that was not here before it is filled with what the host knows."""
        if row in self._slots:
            return self._slots[row]
        if len(row.token_ids) < position:
            raise ValueError(
                f"{len(row.token_ids)} of the row's {position} tokens are known: its penalty needs them all"
            )
        if not self._free:
            self._grow(vocabulary)
        slot = self._slots[row] = self._free.pop()
        ids = np.array([*row.request.prompt_ids, *row.token_ids], dtype=np.int64)
        self.seen[slot] = False
        self.seen[slot, upload(ids, self.seen.device)] = True
        return slot

    def drop(self, row: SampledRow) -> bool:
        """Free the row's mask; False if it has none."""
        slot = self._slots.pop(row, None)
        if slot is not None:
            self._free.append(slot)
        return slot is not None

    def _grow(self, vocabulary: int) -> None:
        slots = len(self.seen)
        larger = self.seen.new_zeros(2 * slots or _FIRST_SLOTS, vocabulary)
        larger[:slots] = self.seen if slots else False
        self._free += range(slots, len(larger))
        self.seen = larger


def _logprobs(logits: Tensor, tokens: Tensor, rows: slice | Tensor | None) -> Tensor | None:
    """Of the tokens [R], float32 [R], for some ``rows``; NaN elsewhere."""
    if rows is None:
        return None
    logprobs = torch.full_like(tokens, torch.nan, dtype=torch.float32)
    of_all = logits[rows].float().log_softmax(-1)
    logprobs[rows] = of_all.gather(-1, tokens[rows][:, None]).squeeze(-1)
    return logprobs


def only(tokens: list[int], like: Tensor) -> Tensor:
    """Scores of the shape of ``like`` [B, V] in which each row's token is the only possible one."""
    scores = torch.full_like(like, -torch.inf)
    index = torch.tensor(tokens, dtype=torch.int64, device=like.device)[:, None]
    return scores.scatter_(1, index, 0.0)
