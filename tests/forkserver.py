"""Worker processes that are forked from one that has imported everything: a start then costs no seconds of imports.

What runs in them is the command ``promptmill-worker`` as it is, but for a gate that tests can shut (tests/gate.py).
They end with the process that started them.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import get_context, parent_process
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import ModuleType

from tests import gate

#: What a worker of a small GPT-2 has imported by the time it serves. None of these starts a thread.
_PRELOAD = [
    "worker.app",
    "worker.cli",
    "worker.engine.inflight",
    "worker.engine.padded",
    "celery.app.amqp",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "kombu.transport.redis",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
]

#: Variables that libraries read while they are imported.
ONCE = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def fork_worker(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    enter: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start ``promptmill-worker ARGUMENTS`` in ``folder``, its output in ``log``; ``enter`` is what it does first.

    A module that ``environment`` names as PLUGIN is imported before it works, and its ``install()`` called.
    """
    process = _context().Process(
        target=_work, args=(list(arguments), dict(environment), str(folder), str(log), enter), daemon=True
    )
    with _start:
        # The main module is that of the tests, of no use there.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = main
    return process


_start = threading.Lock()


@cache
def _context() -> ForkServerContext:
    """Its server starts with the first process."""
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    # Read only once, by what the server imports; of all workers alike.
    os.environ.update(ONCE)
    return context


def _work(
    arguments: list[str], environment: dict[str, str], folder: str, log: str, enter: Callable[[], None] | None
) -> None:
    if enter is not None:
        enter()
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = ["promptmill-worker", *arguments]
    if plugin := environment.get("PLUGIN"):
        importlib.import_module(plugin).install()
    if file := environment.get(gate.VARIABLE):
        gate.install(Path(file))
    from worker.cli import main

    main()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
