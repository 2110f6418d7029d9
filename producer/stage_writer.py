"""Writes the input batches of a stage: to a remote store several at once, for it is waited for, not worked for."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from jobs import layout
from jobs.errors import InputError
from jobs.prompts import write_batch
from jobs.store import Store
from producer.batches import StagedBatch

#: Batches on their way to a remote store at once, and bytes of them.
_WRITERS = 16
_MAX_BYTES = 64 << 20


class StageWriter:
    """A context manager: when it is left without an error, all batches are in the store.

    Left with one, no batch is on its way any more, so that the stage can be removed.
    """

    def __init__(self, store: Store, stage: str) -> None:
        self._store = store
        self._stage = stage
        self._pool = ThreadPoolExecutor(_WRITERS)
        self._pending: deque[tuple[Future[None], int]] = deque()
        self._bytes = 0

    def __enter__(self) -> StageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._wait_for_one()
            if kind is None:
                self._store.sync_folder(layout.input_prefix(self._stage))
        finally:
            self._pool.shutdown(cancel_futures=True)

    def put(self, batch: StagedBatch) -> None:
        """Write ``batch`` soon. Raises what an earlier one failed with, InputError and StoreUnavailableError."""
        if self._store.is_local:
            # Threads would cost more than they gain: the work is this process' own.
            self._write(batch)
            return
        size = batch.table.nbytes
        while self._pending and (len(self._pending) >= 2 * _WRITERS or self._bytes + size > _MAX_BYTES):
            self._wait_for_one()
        self._pending.append((self._pool.submit(self._write, batch), size))
        self._bytes += size

    def _wait_for_one(self) -> None:
        written, size = self._pending.popleft()
        self._bytes -= size
        written.result()

    def _write(self, batch: StagedBatch) -> None:
        path = layout.input_batch(self._stage, batch.index)
        # On the disk all at once, when all are written.
        if not self._store.put_if_absent(path, write_batch(batch.table), sync=False):
            raise InputError(f"stage {self._stage} is in use by another submit")
