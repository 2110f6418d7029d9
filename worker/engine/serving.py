"""Whether a model can be run packed, and on which attention backend: found out by running it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor

from worker.engine.attention import NAME, AttentionBackend, KVShape, Layer
from worker.engine.block_attention import BLOCK_SIZE, BlockAttention, disagreement
from worker.engine.block_kernels import varlen, why_not_varlen
from worker.engine.linears import pack, unpack
from worker.engine.memory import free_bytes, free_memory, kv_positions
from worker.engine.padding import TOLERANCE
from worker.engine.request import EngineLimits
from worker.engine.row import Row
from worker.engine.runner import forward
from worker.engine.scheduler import Chunk
from worker.engine.slot_attention import SlotAttention

log = logging.getLogger(__name__)

#: Of the size of its output, how far the kernel for blocks may be from plain matrices: both round to 16 bits.
KERNEL_TOLERANCE = 0.05

#: Of what the largest step leaves on a CUDA device, the share that keys and values may take.
_LEFT_SHARE = 0.9


class UnservableError(Exception):
    """Raised for a model that computes something else when its rows are packed."""


def backend_for(model: Any, limits: EngineLimits) -> AttentionBackend:
    """Make ``model`` attend through a backend of ours, and return it.

    Raises UnservableError, with the model attending as it did before, where that changes what it computes.
    """
    before = model.config._attn_implementation
    try:
        reference = _Check(model)
        model.set_attn_implementation(NAME)
        shape = _shape_of(model)
        backend = _backend(model, shape, limits, reference)
    except Exception as error:
        model.set_attn_implementation(before)
        if isinstance(error, UnservableError):
            raise
        raise UnservableError(f"it fails with packed rows ({type(error).__name__}: {error})") from error
    _pack_linears(model, backend, reference)
    return backend


def _pack_linears(model: Any, backend: AttentionBackend, reference: _Check) -> None:
    """Pack the linear layers of a model, unless it then fails: some look at the weights of their layers."""
    if pack(model) and (why_not := _objection(reference, backend)):
        log.warning("the linear layers stay as they are: with packed ones it fails (%s)", why_not)
        unpack(model)
        backend.reset()


def _backend(model: Any, shape: KVShape, limits: EngineLimits, reference: _Check) -> AttentionBackend:
    """Blocks where their kernel serves the model, else slots; what is returned has passed the check."""
    size = shape.numbers * model.dtype.itemsize
    budget = limits.kv_tokens or _budget(model, size, limits)
    log.info("room for the keys and values of %d tokens, %d kB each", budget, size // 1024)
    place = shape, model.dtype, model.device, budget, limits.max_length
    why_not = _why_not_blocks(*place[:4])
    if why_not is None:
        blocks = BlockAttention(*place, kernel=varlen)
        why_not = _objection(reference, blocks)
        if why_not is None:
            return blocks
        del blocks
        free_memory()
    log.info("keys and values lie in slots, not in blocks: %s", why_not)
    if model.device.type == "cuda" and limits.kv_tokens is None:
        # While it doubles, an arena is there twice.
        budget = max(budget // 2, 1)
    slots = SlotAttention(shape, model.dtype, model.device, budget, limits.max_length)
    reference.compare(slots)
    return slots


def _why_not_blocks(shape: KVShape, dtype: torch.dtype, device: torch.device, budget: int) -> str | None:
    """None if the kernel runs, and computes what it should."""
    if why_not := why_not_varlen(shape, dtype, device):
        return why_not
    if budget < BLOCK_SIZE:
        return f"{budget} tokens are less than a block of {BLOCK_SIZE}"
    try:
        apart = disagreement(varlen, shape, dtype, device)
    except Exception as error:
        return f"the kernel fails ({type(error).__name__}: {error})"
    return None if apart <= KERNEL_TOLERANCE else f"the kernel is off by {apart:.3g} of what it should give"


def _objection(reference: _Check, backend: AttentionBackend) -> str | None:
    """What the check has against a backend."""
    try:
        reference.compare(backend)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _budget(model: Any, size: int, limits: EngineLimits) -> int:
    """Token positions, of ``size`` bytes, that there is room for beside the largest step."""
    budget = kv_positions(model.device, size, most=limits.max_rows * 2 * limits.max_length)
    if model.device.type == "cuda":
        # What chooses the tokens, the graphs and the libraries need some too.
        left = int((free_bytes(model.device) - _activations(model, limits)) * _LEFT_SHARE)
        free_memory()
        budget = max(min(budget, left // size), 1)
    return budget


@torch.inference_mode()
def _activations(model: Any, limits: EngineLimits) -> int:
    """Bytes that the largest step takes on a CUDA device beside weights, keys and values: it is run."""
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    tokens = limits.max_batch_tokens or limits.max_rows
    while True:
        try:
            forward(model, _Recorder(), _largest_step(model, limits, tokens))
            return torch.cuda.max_memory_allocated(model.device) - before
        except torch.OutOfMemoryError:
            # The engine will find that out too, and halve its steps.
            if tokens <= limits.max_rows:
                raise
        tokens //= 2
        free_memory()


def _largest_step(model: Any, limits: EngineLimits, tokens: int) -> list[Chunk[Row]]:
    """The prompts of as many rows as there may be, of ``tokens`` together, all of which sample."""
    each = max(min(tokens // limits.max_rows, limits.max_length), 1)
    vocabulary = model.get_input_embeddings().num_embeddings
    return [Chunk(cast(Row, _Probe(each, vocabulary)), 0, each, samples=True) for _ in range(limits.max_rows)]


def _shape_of(model: Any) -> KVShape:
    """What every layer keeps of a token. Raises UnservableError where layers differ, or keep nothing."""
    recorder = _Recorder()
    forward(model, recorder, [Chunk(cast(Row, _Probe(2, 2)), 0, 2, samples=True)])
    if not recorder.shapes:
        raise UnservableError("its attention cannot be replaced")
    shapes = set(recorder.shapes.values())
    if len(shapes) > 1 or sorted(recorder.shapes) != [*range(len(recorder.shapes))]:
        raise UnservableError("its layers keep different things of a token")
    heads, key_dim, value_dim = shapes.pop()
    return KVShape(len(recorder.shapes), heads, key_dim, value_dim)


class _Recorder:
    """Notes the shapes of keys and values, and lets every token attend to itself alone."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int, int]] = {}

    def prepare(self, chunks: Sequence[Chunk[Row]]) -> list[Chunk[Row]]:
        return [*chunks]

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.shapes[layer.index] = (key.shape[0], key.shape[2], value.shape[2])
        return value.repeat_interleave(query.shape[0] // key.shape[0], 0).transpose(0, 1)


#: Keys of the rows of the check: no row of an engine has a negative one.
_keys = count(-1, -1)


class _Probe:
    """A row of the check: tokens, and nothing that ends it."""

    def __init__(self, length: int, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(length)
        self.tokens: list[int] = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
        self.key = next(_keys)

    def ids(self, start: int, count: int) -> list[int]:
        return self.tokens[start : start + count]


class _Check:
    """Logits of some rows alone, by the model's own attention, to compare those of packed rows with."""

    #: Tokens of each row that a step computes: prompts in one and in several chunks, beside rows that generate.
    _STEPS = ((19, 0), (1, 7), (1, 20), (1, 1), (1, 1))

    @torch.inference_mode()
    def __init__(self, model: Any) -> None:
        self._model = model
        vocabulary = model.get_input_embeddings().num_embeddings
        self._rows = [_Probe(sum(counts), vocabulary) for counts in zip(*self._STEPS, strict=True)]
        self._alone = [
            model(input_ids=torch.tensor([row.tokens], device=model.device), use_cache=False).logits[0].float()
            for row in self._rows
        ]

    @torch.inference_mode()
    def compare(self, backend: AttentionBackend) -> None:
        """Raises UnservableError if packing moves the logits by more than rounding does."""
        done = [0] * len(self._rows)
        for counts in self._STEPS:
            chunks, alone = [], {}
            for i, (row, tokens) in enumerate(zip(self._rows, counts, strict=True)):
                if tokens:
                    if not backend.cache.reserve(row.key, done[i] + tokens):
                        raise UnservableError(f"a cache of {backend.cache.budget} tokens is too small for two rows")
                    chunks.append(Chunk(cast(Row, row), done[i], tokens, samples=True))
                    done[i] += tokens
                    alone[row.key] = self._alone[i][done[i] - 1]
            packed = backend.prepare(chunks)
            logits = forward(self._model, backend, packed).float()
            want = torch.stack([alone[chunk.row.key] for chunk in packed])
            moved = ((logits - want).norm() / (want - want.mean()).norm()).item()
            if not moved <= TOLERANCE.get(self._model.dtype, 0.05):  # NaN too
                raise UnservableError(f"packing its rows moves the logits by {moved:.3g}")
        for row in self._rows:
            backend.cache.free(row.key)
