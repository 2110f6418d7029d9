"""What a process of a fault test does besides its work: it ends itself at a named point, and keeps a log of its work.

``install()`` wraps the few calls through which a process changes what others see. The environment says what happens:

FAULTS_KILL  ``POINT`` or ``POINT:N``: SIGKILL at the Nth time (the first, unless told otherwise) that the process comes
             to a point of POINTS.
FAULTS_STOP  as FAULTS_KILL, but SIGSTOP: others go on, until a SIGCONT.
FAULTS_LOG   a folder: one file for each process, ``PID.log``, that survives its kill. A line for each claim (``claim
             JOB BATCH KIND``), each row that was handed to the engine (``begin STAGE BATCH ROW SAMPLE``), each that
             came back (``done STAGE BATCH ROW SAMPLE TOKENS``) and each batch whose part this process put (``commit
             STAGE BATCH``), with the time before it, in seconds since the epoch.
FAULTS_CURSE see curse.py.
FAULTS_RAISE the name of a built-in exception: a worker's first task raises it when it has a claim.
FAULTS_FILES how many files the process may have open.
FAULTS_CLOCK seconds that the process's clock is ahead.
FAULTS_LISTED seconds that a worker which gives no sign of life stays listed.
"""

from __future__ import annotations

import builtins
import functools
import os
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

from jobs import spec
from jobs.layout import batch_of_part, stage_of
from jobs.ledger import FINALIZE, Ledger, ledger
from jobs.permits import Permits
from jobs.store import Store

#: A put into the store by what it puts.
_PUTS = {
    "input": re.compile(r"data/[^/]+/input/.*"),
    "carried": re.compile(r"data/[^/]+/carried/.*"),
    "job": re.compile(r"jobs/[^./]+\.json"),
    "pin": re.compile(r"jobs/.*\.pin\.json"),
    "part": re.compile(r"data/[^/]+/parts/.*\.parquet"),
    "plan": re.compile(r"data/[^/]+/plan\.json"),
    "data": re.compile(r"results/.*/data-.*"),
    "manifest": re.compile(r"results/.*/_manifest\.json"),
    "success": re.compile(r"results/.*/_SUCCESS"),
}

#: Where a worker can be ended, in the order in which it comes there. A finalization begins at ``claim finalize``.
WORKER_POINTS = (
    "after claim batch", "before put pin", "after put pin", "first row done", "before put part", "after put part",
    "before finish", "after finish", "after claim finalize", "before put plan", "after put plan", "before put data",
    "after put data", "before put manifest", "after put manifest", "before put success", "after put success",
    "before finalized", "after finalized", "before delete", "after delete",
)  # fmt: skip

#: And a producer, while it submits.
PRODUCER_POINTS = (
    "before put input", "after put input", "before put job", "after put job", "before accept", "after accept",
    "before send", "after send",
)  # fmt: skip

#: And one that retries, where it does not what a submit does too.
RETRY_POINTS = ("before put carried", "after put carried", "before restore", "after restore")

POINTS = WORKER_POINTS + PRODUCER_POINTS + RETRY_POINTS


class _Faults:
    def __init__(self) -> None:
        self._signal = signal.SIGSTOP if "FAULTS_STOP" in os.environ else signal.SIGKILL
        given = os.environ.get("FAULTS_STOP") or os.environ.get("FAULTS_KILL", "")
        point, _, nth = given.partition(":")
        if point and point not in POINTS:
            raise ValueError(f"there is no point {point!r}")
        self._point, self._nth = point, int(nth or 1)
        self._seen: Counter[str] = Counter()
        folder = os.environ.get("FAULTS_LOG")
        self._log = None if folder is None else os.open(
            Path(folder) / f"{os.getpid()}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT
        )  # fmt: skip

    def at(self, point: str) -> None:
        """The process is there now."""
        self._seen[point] += 1
        if point == self._point and self._seen[point] == self._nth:
            os.kill(os.getpid(), self._signal)

    def note(self, *words: object) -> None:
        if self._log is not None:
            os.write(self._log, (" ".join(map(str, (f"{time.time():.3f}", *words))) + "\n").encode())


def install() -> None:
    """Wrap this process's calls. A worker's are wrapped where the worker's code is imported."""
    faults = _Faults()
    _log_commits(faults)
    _wrap(Store, "put_if_absent", faults, lambda store, path, content: _put_name(path))
    _wrap(Store, "delete", faults, lambda store, paths: "delete")
    _wrap(Ledger, "finish", faults, lambda *_: "finish")
    _wrap(Ledger, "finalized", faults, lambda *_: "finalized")
    _wrap(Ledger, "accept", faults, lambda *_: "accept")
    _wrap(Ledger, "restore", faults, lambda *_: "restore")
    _wrap(Permits, "send", faults, lambda *_: "send")
    _wrap_claims(faults)
    _wrap_rows(faults)
    if files := os.environ.get("FAULTS_FILES"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
    if ahead := os.environ.get("FAULTS_CLOCK"):
        _set_clock(float(ahead))
    if listed := os.environ.get("FAULTS_LISTED"):
        ledger.WORKER_TTL_S = int(listed)


def _put_name(path: str) -> str | None:
    return next((f"put {name}" for name, pattern in _PUTS.items() if pattern.fullmatch(path)), None)


def _wrap(owner: type, method: str, faults: _Faults, name_of: Callable[..., str | None]) -> None:
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        name = name_of(*args)
        if name is not None:
            faults.at(f"before {name}")
        answer = original(*args, **kwargs)
        if name is not None:
            faults.at(f"after {name}")
        return answer

    setattr(owner, method, wrapped)


def _log_commits(faults: _Faults) -> None:
    original = Store.put_if_absent

    def put_if_absent(self: Store, path: str, content: bytes, *, sync: bool = True) -> bool:
        won = original(self, path, content, sync=sync)
        stage, found = stage_of(path), batch_of_part(path)
        if won and found is not None:
            faults.note("commit", stage, found[0])
        return won

    Store.put_if_absent = put_if_absent  # type: ignore[method-assign]


def _wrap_claims(faults: _Faults) -> None:
    original = Ledger.claim

    def claim(self: Ledger, *args: Any) -> Any:
        claimed = original(self, *args)
        if claimed is not None:
            faults.note("claim", claimed.job, claimed.batch, claimed.kind)
            faults.at("after claim finalize" if claimed.kind == FINALIZE else "after claim batch")
        return claimed

    Ledger.claim = claim  # type: ignore[method-assign]


def _wrap_rows(faults: _Faults) -> None:
    if "worker.app" not in sys.modules:  # a producer
        return
    from worker import claims, generate

    submit = generate._submit

    def submit_logged(worker: Any, job: Any, prompts: Any, lease: Any) -> Any:
        pending = submit(worker, job, prompts, lease)
        for one in pending:
            names = (job.stage, lease.claim.batch, one.prompt.row_index, one.sample)
            faults.note("begin", *names)
            if one.future is not None:
                one.future.add_done_callback(functools.partial(done, names))
        return pending

    def done(names: tuple[Any, ...], future: Future[Any]) -> None:
        if future.exception() is None and not future.result().cancelled:
            faults.note("done", *names, len(future.result().token_ids))
            faults.at("first row done")

    generate._submit = submit_logged
    if name := os.environ.get("FAULTS_RAISE"):
        claims.run_batch = _raising_once(claims.run_batch, getattr(builtins, name))
    if "FAULTS_CURSE" in os.environ:
        from ops.faults import curse

        curse.install()


def _raising_once(function: Callable[..., Any], error: type[BaseException]) -> Callable[..., Any]:
    raised = False

    def wrapped(*args: Any) -> Any:
        nonlocal raised
        if not raised:
            raised = True
            raise error("a fault")
        return function(*args)

    return wrapped


def _set_clock(ahead: float) -> None:
    """Of what asks Python for the time; the clock of Redis is another's."""
    seconds, now = time.time, spec.now
    time.time = lambda: seconds() + ahead
    for module in [module for module in sys.modules.values() if getattr(module, "now", None) is now]:
        module.now = lambda: now() + timedelta(seconds=ahead)  # type: ignore[attr-defined]
