"""Filters and draws over many distributions at once: functions of tensors that never wait for the device.

A distribution is a row of weights: float32, none negative, the best of them not 0, without the need to sum up to 1.
Every filter cuts off the smallest weights, so all it has to find is the weight at the edge. That takes no sort but
three histograms, each over ten more bits of the weights: the bits of floats that are not negative are in the
order of the floats.

Rows with NaN or infinities in them do no harm to others, and what comes out for them is some column that exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Columns that are summed up at once; the cumulation walks over the sums, and then inside of one block.
_DRAW_BLOCK = 256
#: Columns of which only the maximum is looked at first, and how many of these blocks are then opened.
_BLOCK = 32
_OPENED = 128
#: The bits of a float32 from 0.0 to 1.0 are less than 2^30: three digits of ten bits.
_SHIFTS = (20, 10, 0)
_DIGITS = 1024
#: Rows that a CPU looks at in full at once: what is computed of more of them falls out of its caches.
_WIDE_ROWS = 8


@dataclass(frozen=True, slots=True)
class Filters:
    """What is to be cut off from S distributions; None where no row asks for it."""

    #: float64 [S], infinite where it is off, and so is ``top_p``.
    top_k: Tensor | None
    top_p: Tensor | None
    #: float32 [S], 0 where it is off.
    min_p: Tensor | None

    def of(self, rows: Tensor) -> Filters:
        """Those of some rows."""
        return Filters(*(None if one is None else one[rows] for one in (self.top_k, self.top_p, self.min_p)))


def best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The maximum [R] of each row of [R, N] and the first column [R] that has it; NaN if there is any NaN.

    This is ``max(-1)``, ten times as fast on CPU: there ``amax`` looks at many values at a time and ``max`` at one.
    """
    maxima = _by_blocks(torch.amax, logits, _BLOCK)
    block = maxima.argmax(-1, keepdim=True)
    inside, columns = _open(logits, block * _BLOCK, _BLOCK)
    place = inside.argmax(-1, keepdim=True)
    return maxima.gather(-1, block).squeeze(-1), columns.gather(-1, place).squeeze(-1)


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Logits [R, V] with those of ``seen`` tokens ([R, V] bool) pushed down by ``penalty`` [R].

    CTRL (Keskar et al., 2019, arXiv 1909.05858), in the form that transformers gave it.
    """
    penalty = penalty[:, None]
    # One of the two terms is 0: on CPU much faster than choosing between them.
    pushed = logits.clamp(max=0).mul_(penalty).add_(logits.clamp(min=0).div_(penalty))
    return torch.where(seen, pushed, logits)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Columns [S]: for each row of weights [S, N] the first whose cumulated probability exceeds ``uniform`` [S].

    The cumulation runs in order of token ids: unlike the order of probabilities, it cannot change
    when rounding swaps two tokens that are nearly equally probable.
    """
    return _first_beyond(weights, uniform * _total(weights, uniform.dtype))


def draw_filtered(logits: Tensor, temperatures: Tensor, filters: Filters, uniform: Tensor) -> Tensor:
    """Columns [S]: draws from the softmax of ``logits`` [S, V] over ``temperatures`` [S, 1], after ``filters``.

    On CPU, rows for which the best blocks of columns are enough are drawn from these. Other devices draw from all
    columns: which rows need them is not known without waiting.
    """
    if logits.device.type != "cpu" or logits.shape[-1] < 2 * _OPENED * _BLOCK:
        return draw(keep((logits / temperatures).softmax(-1), filters), uniform)
    best = _best_of(logits, temperatures, filters)
    tokens = torch.empty_like(uniform, dtype=torch.int64)
    few = best.enough.nonzero().squeeze(-1)
    if len(few):
        part = best if len(few) == len(tokens) else best.of(few)
        place = draw(keep(part.weights, filters.of(few), part.elsewhere), uniform[few])
        tokens[few] = part.columns.gather(-1, place[:, None]).squeeze(-1)
    for many in torch.split((~best.enough).nonzero().squeeze(-1), _WIDE_ROWS):
        if len(many):
            weights = (logits[many] / temperatures[many]).softmax(-1)
            tokens[many] = draw(keep(weights, filters.of(many)), uniform[many])
    return tokens


@dataclass(frozen=True, slots=True)
class _Best:
    """The best blocks of each of S rows."""

    #: float32 [S, M], and their columns [S, M] in ascending order.
    weights: Tensor
    columns: Tensor
    #: The mass [S] of all other columns, where it matters.
    elsewhere: Tensor | None
    #: bool [S]: whether the filters are known to leave nothing of the other columns.
    enough: Tensor

    def of(self, rows: Tensor) -> _Best:
        elsewhere = None if self.elsewhere is None else self.elsewhere[rows]
        return _Best(self.weights[rows], self.columns[rows], elsewhere, self.enough[rows])


def _best_of(logits: Tensor, temperatures: Tensor, filters: Filters) -> _Best:
    elsewhere = share = None
    if filters.top_p is not None and filters.top_k is None:
        # A share of the mass takes all columns to know; after top_k, only these.
        everything = (logits / temperatures).softmax(-1)
        weights, columns, outside = _narrow(everything)
        inside = _total(weights, filters.top_p.dtype)
        elsewhere = _total(everything, filters.top_p.dtype) - inside
        share = filters.top_p * (inside + elsewhere)
    else:
        logits, columns, outside = _narrow(logits)
        # One column more: the largest weight that may be elsewhere.
        weights = (torch.cat([logits, outside[:, None]], -1) / temperatures).softmax(-1)
        weights, outside = weights[:, :-1].contiguous(), weights[:, -1]
    # Softmax rounds one score differently in rows of different lengths.
    outside = outside * (1 + 1e-5)
    above = torch.gt(weights, outside[:, None], out=torch.empty_like(weights))
    enough = torch.zeros_like(outside, dtype=torch.bool)
    if filters.min_p is not None:
        enough = filters.min_p * weights.amax(-1) > outside
        if filters.top_p is not None and share is None:
            enough &= filters.top_p.isinf()
    if filters.top_k is not None:
        enough = enough | (above.sum(-1) >= filters.top_k)
    if share is not None:
        enough = enough | (_total(above.mul_(weights), share.dtype) >= share)
    return _Best(weights, columns, elsewhere, enough)


def keep(weights: Tensor, filters: Filters, elsewhere: Tensor | None = None) -> Tensor:
    """The weights [S, N] with 0 for what ``filters`` remove.

    As in transformers each filter works on what the one before it left: the ``top_k`` best and all ties with the
    last of them; the smallest set that has ``top_p`` of the mass, of the ties at its edge those with the
    highest ids; and all with at least ``min_p`` times the best weight. ``elsewhere`` [S] is mass that is not among
    the weights but counts for ``top_p``.
    """
    if filters.top_k is not None:
        counts = torch.ones((), dtype=filters.top_k.dtype, device=weights.device).expand(weights.shape)
        weights = _at_least(weights, _edge(weights, counts, filters.top_k)[0])
    if filters.top_p is not None:
        masses = weights.to(filters.top_p.dtype)
        total = masses.sum(-1)
        wanted = filters.top_p * (total if elsewhere is None else total + elsewhere)
        edge, above = _edge(weights, masses, wanted)
        weights = _without_surplus(_at_least(weights, edge), edge, wanted - above)
    if filters.min_p is not None:
        weights = _at_least(weights, filters.min_p * weights.amax(-1))
    return weights


def _edge(weights: Tensor, masses: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The largest weight [S] such that all columns of at least that weight have ``wanted`` [S] of ``masses`` [S, N].

    Also returns the mass [S] above that weight. Where there is less than ``wanted`` in all, the weight is 0.
    """
    keys = weights.view(torch.int32)
    prefix = keys.new_zeros(len(keys), 1)
    wanted = wanted[:, None].contiguous()
    above = torch.zeros_like(wanted)
    for shift in _SHIFTS:
        leading = keys >> shift
        bins = leading & (_DIGITS - 1)
        # Weights with other leading digits go to as many bins more, which are not looked at: all in one bin
        # would be three times as slow, each addition waiting for the one before.
        bins += (leading.bitwise_right_shift_(10) ^ prefix).clamp_(0, 1) << 10
        histogram = wanted.new_zeros(len(keys), 2 * _DIGITS).scatter_add_(1, bins.long(), masses)
        from_top = torch.cat([above, histogram[:, :_DIGITS].flip(-1)], -1).cumsum(-1)
        place = torch.searchsorted(from_top, wanted).clamp_(1, _DIGITS)
        above = from_top.gather(-1, place - 1)
        prefix = (prefix << 10) + (_DIGITS - place).int()
    return prefix.view(torch.float32).squeeze(-1), above.squeeze(-1)


def _at_least(weights: Tensor, edge: Tensor) -> Tensor:
    """The weights [S, N] with 0 for those below ``edge`` [S]."""
    # On CPU, comparing into floats and multiplying is several times as fast as masks of bool.
    return torch.ge(weights, edge[:, None], out=torch.empty_like(weights)).mul_(weights)


def _without_surplus(weights: Tensor, edge: Tensor, missing: Tensor) -> Tensor:
    """The weights [S, N] with no more ties at ``edge`` [S] than it takes to have ``missing`` [S] of mass in them."""
    ties = torch.eq(weights, edge[:, None], out=torch.empty_like(weights))
    surplus = _total(ties, missing.dtype) - (missing / edge).ceil()
    first = _first_beyond(ties, surplus.clamp(min=0))
    columns = torch.arange(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    early = torch.lt(columns, first[:, None].to(weights.dtype), out=torch.empty_like(weights))
    return weights.addcmul(weights, early.mul_(ties), value=-1)


def _first_beyond(weights: Tensor, target: Tensor) -> Tensor:
    """The first column [S] at which the weights [S, N], cumulated, exceed ``target`` [S].

    Rounding can take the target up to the total; the last column of any weight is then the one.
    """
    sums = _by_blocks(torch.sum, weights, _DRAW_BLOCK).to(target.dtype).cumsum(-1)
    block = _beyond(sums, target[:, None])
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp_(min=0)), 0)
    inside, columns = _open(weights, block * _DRAW_BLOCK, _DRAW_BLOCK)
    place = _beyond(inside.to(target.dtype).cumsum(-1), target[:, None] - before)
    return columns.gather(-1, place).squeeze(-1)


def _beyond(cumulated: Tensor, target: Tensor) -> Tensor:
    """The first place [S, 1] with more than ``target`` [S, 1], or the last at which ``cumulated`` [S, N] grows."""
    place = torch.searchsorted(cumulated, target, right=True)
    last = torch.searchsorted(cumulated, cumulated[:, -1:].contiguous())
    # NaN is beyond all places.
    return torch.minimum(place, last).clamp_(max=cumulated.shape[-1] - 1)


def _total(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums [S] of weights [S, N], exact beyond blocks of columns."""
    return _by_blocks(torch.sum, weights, _DRAW_BLOCK).to(dtype).sum(-1)


def _narrow(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values [S, M] in the best blocks of [S, N], their columns [S, M] in order, and the most [S] that a value
    elsewhere can be: no other block has more than the smallest maximum of the best ones.
    """
    blocks, tail = divmod(values.shape[-1], _BLOCK)
    split = torch.unflatten(values[:, : blocks * _BLOCK], 1, (blocks, _BLOCK))
    maxima, chosen = split.amax(-1).topk(_OPENED, sorted=False)
    chosen = chosen.sort(-1).values
    inside = split[torch.arange(len(values), device=values.device)[:, None], chosen].flatten(1)
    columns = (chosen[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=values.device)).flatten(1)
    if tail:
        inside = torch.cat([inside, values[:, -tail:]], -1)
        last = torch.arange(blocks * _BLOCK, values.shape[-1], device=values.device)
        columns = torch.cat([columns, last.expand(len(values), -1)], -1)
    return inside, columns, maxima.amin(-1)


def _by_blocks(reduce: Callable[[Tensor, int], Tensor], values: Tensor, size: int) -> Tensor:
    """``reduce`` over each ``size`` columns of [S, N] and over the rest, which may be fewer: [S, ceil(N / size)]."""
    blocks, tail = divmod(values.shape[-1], size)
    parts = [reduce(torch.unflatten(values[:, : blocks * size], 1, (blocks, size)), -1)] if blocks else []
    if tail:
        parts.append(reduce(values[:, -tail:], -1)[:, None])
    return torch.cat(parts, -1)


def _open(values: Tensor, start: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``size`` values of each row of [S, N] from ``start`` [S, 1] on, the last again beyond N, and their columns."""
    columns = (start + torch.arange(size, device=values.device)).clamp_(max=values.shape[-1] - 1)
    return values.gather(-1, columns), columns
