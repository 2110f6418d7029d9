"""The worker process: model, engine, upkeep thread and Celery consumer, from start to drain."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import warnings
from dataclasses import dataclass

from celery import signals
from celery.exceptions import SecurityWarning

from jobs import __version__
from jobs.ledger import Ledger, WorkerInfo
from jobs.permits import Permits, make_app
from jobs.reconcile import Reconciler
from jobs.records import job_ids
from jobs.settings import Settings
from jobs.spec import now
from jobs.store import Store
from worker.context import WorkerContext
from worker.engine.padded import PaddedEngine
from worker.engine.request import EngineLimits
from worker.heartbeat import Upkeep
from worker.metrics import serve_metrics
from worker.models import LoadedModel, load_model
from worker.tasks import register_tasks

_log = logging.getLogger(__name__)

#: Seconds without a decode step, rows in hand, after which the process ends itself.
STALL_S = 600.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The command line of ``promptmill-worker start``."""

    #: The alias that jobs name, and the path or hub id that it stands for.
    model: str
    source: str
    concurrency: int = 4
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "auto"
    max_batch_tokens: int | None = None
    max_rows: int = 32
    metrics_port: int | None = None
    grace_s: float = 30.0
    trust_remote_code: bool = False
    #: End when this process is no longer the parent.
    parent_pid: int | None = None


def run_worker(settings: Settings, options: WorkerOptions) -> None:
    """Serve a model until SIGTERM or SIGINT. Raises ModelError, UnavailableError before the first claim."""
    store = Store.open(settings.store, create=True)
    ledger = Ledger.connect(settings.redis, store.id, lease_s=settings.lease_s, sweep_s=settings.sweep_s)
    _warn_of_other_stores(ledger, store)
    ledger.register_store(store.uri)
    loaded = load_model(
        options.model,
        options.source,
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    context = build_context(settings, options, store, ledger, loaded)
    context.engine.start()
    if options.metrics_port is not None:
        serve_metrics(context, options.metrics_port)
    try:
        consume(context, options)
    finally:
        context.engine.close()
        ledger.unregister(context.registration.id)
        ledger.close()


def _warn_of_other_stores(ledger: Ledger, store: Store) -> None:
    """A store without a job beside others in the same Redis is more often a mistyped place than a new one."""
    others = {uri for store_id, uri in ledger.stores().items() if store_id != store.id}
    if others and next(job_ids(store), None) is None:
        _log.warning("the store %s has no jobs; this Redis also serves %s", store.uri, ", ".join(sorted(others)))


def build_context(
    settings: Settings, options: WorkerOptions, store: Store, ledger: Ledger, loaded: LoadedModel
) -> WorkerContext:
    """All that the tasks of this process share; the engine is built and warm, but not started."""
    limits = EngineLimits(
        max_rows=options.max_rows,
        max_batch_tokens=options.max_batch_tokens or default_batch_tokens(loaded.device),
        max_length=loaded.max_length,
    )
    engine = PaddedEngine(loaded.model, loaded.tokenizer, limits)
    engine_name = "padded"
    _log.info("engine: %s (%d rows, %d tokens a batch)", engine_name, limits.max_rows, limits.max_batch_tokens)
    registration = WorkerInfo(
        id=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}",
        model=options.model,
        fingerprint=loaded.fingerprint,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=str(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        engine=engine_name,
        revision=loaded.revision,
        slots=options.concurrency,
        version=__version__,
        started_at=now().timestamp(),
    )
    permits = Permits(make_app(settings.redis, store.id), store.id)
    return WorkerContext(
        settings, store, ledger, permits, engine, loaded.tokenizer, registration, parent_pid=options.parent_pid
    )


def default_batch_tokens(device: object) -> int:
    """Token positions in one batch where the user named no number: what fits small machines of either kind."""
    return 131_072 if str(device).startswith("cuda") else 32_768


def consume(context: WorkerContext, options: WorkerOptions) -> None:
    """Take permits from the model's queue until the process is told to stop."""
    app = make_app(context.settings.redis, context.store.id, context.model)
    register_tasks(app, context)
    reconciler = Reconciler(context.store, context.ledger, context.permits, context.registration.id)
    upkeep = Upkeep(context, reconciler, STALL_S)
    context.ledger.register(context.info())
    upkeep.start()
    timers: list[threading.Timer] = []

    def drain(**_: object) -> None:
        """Claim no more; give what runs a grace period, then hand it back."""
        if context.draining.is_set():
            return
        context.draining.set()
        _log.info("draining: %d batches in hand, %g s of grace", len(context.leases), options.grace_s)
        timer = threading.Timer(options.grace_s, context.abandoned.set)
        timer.daemon = True
        timer.start()
        timers.append(timer)

    signals.worker_shutting_down.connect(drain, weak=False)
    # Messages are JSON and carry nothing: running as root is no more dangerous than for any program.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    worker = app.Worker(
        pool="threads",
        concurrency=options.concurrency,
        loglevel=context.settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    try:
        worker.start()
    finally:
        drain()
        upkeep.stop()
        for timer in timers:
            timer.cancel()
