"""What follows for a sampler from the parameters of some rows: who is drawn how, as tensors on the device.

It is made whenever a row enters or leaves, so it takes about a microsecond a row and two transfers to the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.spec import SamplingParams
from worker.engine.distribution import Filters, draw, draw_filtered
from worker.engine.request import Request

#: Below this, dividing by the temperature could overflow float32, and the distribution is one token anyway: greedy.
MIN_TEMPERATURE = 1e-5

#: The ways of drawing. From all tokens; from those that top_k or min_p leave, which are few; from those that top_p
#: alone leaves, which takes the mass of all tokens.
_GREEDY, _PLAIN, _CUT, _NUCLEUS = range(4)

#: Logits (rows x vocabulary) that are drawn from at once, so that what is computed of all of them stays in the caches
#: of a CPU, and takes little of the memory of any other device.
_AT_ONCE_ON_CPU = {_PLAIN: 1 << 20, _CUT: 1 << 24, _NUCLEUS: 1 << 20}
_AT_ONCE = 1 << 24

#: What is taken from a row's parameters; top_k and top_p are infinite where they are off.
_NUMBERS = ("temperature", "top_k", "top_p", "min_p", "penalty")
_FACTS = np.dtype([("kind", np.int64), ("logprobs", np.bool_), *((name, np.float64) for name in _NUMBERS)])


@dataclass(frozen=True, slots=True)
class Group:
    """S rows that are drawn together."""

    #: Which rows of the batch they are, and which rows of the tensor that has their logits: that of the batch, or
    #: that of the penalised rows.
    rows: slice | Tensor
    source: slice | Tensor
    penalised: bool
    #: float32 [S, 1].
    temperatures: Tensor
    filters: Filters | None

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Tokens [S] from the group's source of logits [.., V] and its own ``uniform`` [S]."""
        logits = logits[self.source].float()
        if self.filters is None:
            return draw((logits / self.temperatures).softmax(-1), uniform)
        return draw_filtered(logits, self.temperatures, self.filters, uniform)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the tokens of R rows are chosen."""

    #: Rows with a repetition penalty, the slots of their masks, and their float32 penalties: [P] each, or None.
    penalised: Tensor | None
    slots: Tensor
    penalties: Tensor
    #: Rows that want logprobs, or None.
    scored: slice | Tensor | None
    groups: list[Group]
    #: The rows of all groups, one group after the other, and the keys of their draws.
    drawn: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.uint64]
    samples: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, requests: Sequence[Request], slots: Sequence[int], vocabulary: int, device: torch.device) -> Plan:
        """For the ``requests`` of R rows; ``slots`` [R] matter where there is a repetition penalty."""
        facts = _facts([request.params for request in requests])
        by_kind = np.argsort(facts["kind"], kind="stable")
        has_penalty = facts["penalty"][by_kind] != 1
        penalised, others = by_kind[has_penalty], by_kind[~has_penalty]
        scored = np.flatnonzero(facts["logprobs"])
        # The penalised rows' logits will be in a tensor of their own, in this order.
        runs = [(False, run) for run in _runs(facts["kind"][others], vocabulary, device)]
        runs += [(True, run) for run in _runs(facts["kind"][penalised], vocabulary, device)]
        parts = [(penalised if apart else others)[run] for apart, run in runs]
        drawn = np.concatenate([np.zeros(0, dtype=np.int64), *parts])

        # One transfer for all indices, and one for all numbers.
        lists = [penalised, np.array(slots, dtype=np.int64)[penalised], scored, *parts]
        indices = torch.split(upload(np.concatenate(lists), device), [len(one) for one in lists])
        chosen = facts[np.concatenate([penalised, drawn])]
        table = upload(np.stack([chosen[name] for name in _NUMBERS]), device)
        penalties, *numbers = torch.split(table, [len(penalised), *(len(part) for part in parts)], dim=1)
        groups = []
        for (apart, run), part, index, own in zip(runs, parts, indices[3:], numbers, strict=True):
            rows = _as_slice(part, index)
            groups.append(
                Group(rows, run if apart else rows, apart, own[0, :, None].float(), _filters(facts[part], own))
            )
        return cls(
            penalised=indices[0] if len(penalised) else None,
            slots=indices[1],
            penalties=penalties[_NUMBERS.index("penalty")].float(),
            scored=_as_slice(scored, indices[2]) if len(scored) else None,
            groups=groups,
            drawn=drawn,
            seeds=np.array([requests[i].seed for i in drawn.tolist()], dtype=np.uint64),
            samples=np.array([requests[i].sample for i in drawn.tolist()], dtype=np.uint64),
        )


def _facts(params: Sequence[SamplingParams]) -> npt.NDArray[Any]:
    """A record for each of R rows; those of a job share one ``SamplingParams``, which is looked at once."""
    distinct = {id(one): one for one in params}
    place = {key: i for i, key in enumerate(distinct)}
    records = [
        (
            _kind(one),
            one.logprobs,
            one.temperature,
            one.top_k or np.inf,
            one.top_p if one.top_p < 1 else np.inf,
            one.min_p,
            one.repetition_penalty,
        )
        for one in distinct.values()
    ]
    return np.array(records, dtype=_FACTS)[[place[id(one)] for one in params]]


def _kind(params: SamplingParams) -> int:
    if params.temperature < MIN_TEMPERATURE:
        return _GREEDY
    if params.top_k:
        return _CUT
    if params.top_p < 1:
        return _NUCLEUS
    return _CUT if params.min_p else _PLAIN


def upload(values: npt.NDArray[np.int64] | npt.NDArray[np.float64], device: torch.device) -> Tensor:
    """``values`` on the device, without waiting for it; float64 becomes float32 where the device has no other."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda" and values.size:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, torch.float32 if device.type == "mps" and tensor.is_floating_point() else tensor.dtype)


def _filters(facts: npt.NDArray[Any], numbers: Tensor) -> Filters | None:
    """The filters of S rows, given their ``_NUMBERS`` [.., S]; None if there are none."""
    top_k = numbers[1] if np.isfinite(facts["top_k"]).any() else None
    top_p = numbers[2] if np.isfinite(facts["top_p"]).any() else None
    min_p = numbers[3].float() if facts["min_p"].any() else None
    return None if top_k is None and top_p is None and min_p is None else Filters(top_k, top_p, min_p)


def _runs(kinds: npt.NDArray[np.int64], vocabulary: int, device: torch.device) -> list[slice]:
    """Where ``kinds``, which are sorted, have one way of drawing, in pieces of no more than what is drawn at once."""
    runs = []
    for kind in (_PLAIN, _CUT, _NUCLEUS):
        start, stop = np.searchsorted(kinds, [kind, kind + 1]).tolist()
        step = max((_AT_ONCE_ON_CPU[kind] if device.type == "cpu" else _AT_ONCE) // vocabulary, 1)
        runs += [slice(at, min(at + step, stop)) for at in range(start, stop, step)]
    return runs


def _as_slice(rows: npt.NDArray[np.int64], index: Tensor) -> slice | Tensor:
    """A slice if ``rows``, which ``index`` has on the device, are neighbours: that needs no copy."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return index
