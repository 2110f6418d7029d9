"""The worker process: model, engine, upkeep thread and Celery consumer, from start to drain."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from celery import bootsteps, signals
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from jobs import __version__
from jobs.exposition import Probes
from jobs.ledger import Ledger, WorkerInfo
from jobs.parquet import keep_pandas_out
from jobs.permits import Permits, make_app
from jobs.reconcile import Reconciler
from jobs.records import job_ids
from jobs.settings import Settings
from jobs.spec import now
from jobs.store import Store
from worker.context import WorkerContext
from worker.engine.build import EngineChoice, build_engine
from worker.engine.request import Engine, EngineLimits
from worker.heartbeat import EXIT_ENGINE, Upkeep
from worker.metrics import serve_metrics, watch_engine
from worker.models import LoadedModel, load_model
from worker.tasks import register_tasks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The command line of ``promptmill-worker start``."""

    #: The alias that jobs name, and the path or hub id that it stands for.
    model: str
    source: str
    concurrency: int = 4
    device: str = "auto"
    dtype: str = "auto"
    engine: EngineChoice = "auto"
    max_batch_tokens: int | None = None
    max_rows: int = 32
    metrics_port: int | None = None
    grace_s: float = 30.0
    trust_remote_code: bool = False
    #: End when this process is no longer the parent.
    parent_pid: int | None = None


def run_worker(settings: Settings, options: WorkerOptions) -> int:
    """Serve a model until SIGTERM or SIGINT; the exit status, 0 if it was one of them that ended it.

    Raises InputError, ModelError, UnavailableError before the first claim.
    """
    keep_pandas_out()
    probes = Probes(ready=lambda: "the model is being loaded")
    if options.metrics_port is not None:
        serve_metrics(options.metrics_port, probes)
    store = Store.open(settings.store, create=True)
    ledger = Ledger.connect(settings.redis, store.id, lease_s=settings.lease_s, sweep_s=settings.sweep_s)
    ledger.require_worker()
    _warn_of_other_stores(ledger, store)
    ledger.register_store(store.uri)
    # All that touches the model is done by one thread. OpenMP keeps a team of threads for each that ever did: with
    # more of them than cores, those of the engine sleep between two operations instead of waiting for the next.
    engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    context = engine_thread.submit(_load, settings, options, store, ledger).result()
    context.engine.start(engine_thread)
    try:
        if options.metrics_port is not None:
            watch_engine(context)
        return 0 if consume(context, options, probes) else EXIT_ENGINE
    finally:
        context.engine.close()
        ledger.unregister(context.registration.id)
        ledger.close()


def _load(settings: Settings, options: WorkerOptions, store: Store, ledger: Ledger) -> WorkerContext:
    """The model and its engine, warm but not started. Raises ModelError."""
    loaded = load_model(
        options.model,
        options.source,
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    return build_context(settings, options, store, ledger, loaded)


def _warn_of_other_stores(ledger: Ledger, store: Store) -> None:
    """A store without a job beside others in the same Redis is more often a mistyped place than a new one."""
    others = {uri for store_id, uri in ledger.stores().items() if store_id != store.id}
    if others and next(job_ids(store), None) is None:
        _log.warning("the store %s has no jobs; this Redis also serves %s", store.uri, ", ".join(sorted(others)))


def build_context(
    settings: Settings, options: WorkerOptions, store: Store, ledger: Ledger, loaded: LoadedModel
) -> WorkerContext:
    """All that the tasks of this process share; the engine is warm, but not started. Raises ModelError."""
    engine, engine_name = engine_for(options, loaded)
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


def engine_for(options: WorkerOptions, loaded: LoadedModel) -> tuple[Engine, str]:
    """The engine that the options ask for, warm but not started, and its name. Raises ModelError."""
    limits = EngineLimits(options.max_rows, options.max_batch_tokens, loaded.max_length)
    engine, name = build_engine(options.engine, loaded.model, loaded.tokenizer, limits)
    unit, limits = "step" if name == "inflight" else "batch", engine.limits
    _log.info("engine: %s (%d rows, %d tokens a %s)", name, limits.max_rows, limits.max_batch_tokens, unit)
    return engine, name


def consume(context: WorkerContext, options: WorkerOptions, probes: Probes | None = None) -> bool:
    """Take permits from the model's queue until the process is told to stop; False if Celery stopped by itself.

    From here on ``probes`` tell what has become of the engine and the registration.
    """
    app = make_app(context.settings.redis, context.store.id, context.model)
    register_tasks(app, context)
    reconciler = Reconciler(context.store, context.ledger, context.permits, context.registration.id)
    upkeep = Upkeep(context, reconciler)
    if probes is not None:
        probes.health, probes.ready = upkeep.heartbeat.unwell, upkeep.heartbeat.unready
    drain = Drain(context, options.grace_s)
    app.steps["worker"].add(drain_step(drain, upkeep))
    signals.worker_shutting_down.connect(drain.by_signal)
    # Messages are JSON and carry nothing: running as root is no more dangerous than for any program.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Celery's advice, at each reconnect, about an option that a pool of threads does not have.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_without_traceback)
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
        drain.begin()
        upkeep.stop()
        drain.cancel()
    if not drain.asked:
        _log.critical("the consumer of permits stopped: the process ends")
    return drain.asked


def _without_traceback(record: logging.LogRecord) -> bool:
    """A connection that is lost and found again is a line, not a page, in the log."""
    if record.exc_info and record.levelno < logging.ERROR:
        record.msg, record.args = f"{record.getMessage()} ({record.exc_info[1]!r})", ()
        record.exc_info = None
    return True


class Drain:
    """The end of a worker: it claims no more, gives what runs a grace period, then hands it back."""

    def __init__(self, context: WorkerContext, grace_s: float) -> None:
        self._context = context
        self._timer = threading.Timer(grace_s, context.abandoned.set)
        self._timer.daemon = True
        self._grace_s = grace_s
        #: Whether it was a signal that ended the worker.
        self.asked = False

    def by_signal(self, **_: object) -> None:
        """The first signal begins the drain; another one ends the grace period."""
        if self.asked:
            self._context.abandoned.set()
        self.asked = True
        self.begin()

    def begin(self) -> None:
        if self._context.draining.is_set():
            return
        self._context.draining.set()
        _log.info("draining: %d batches in hand, %g s of grace", len(self._context.leases), self._grace_s)
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()


def drain_step(drain: Drain, upkeep: Upkeep) -> type[bootsteps.StartStopStep]:
    """The part of Celery's worker that begins ``drain`` whatever stops the worker, and sees to its signals.

    From then on the worker is listed: it ends as it is told to.

    Without it a consumer that dies (of a message that is no JSON, for one) waits for the threads of the pool, which
    go on for as long as there is work: a process that lives and takes no permits.
    """

    class DrainStep(bootsteps.StartStopStep):  # type: ignore[misc]
        # Started after Celery installed its handlers; closed before the pool waits for its threads.
        requires = ("celery.worker.components:Pool",)

        def start(self, parent: object) -> None:
            # Celery's cold shutdown (SIGQUIT, or SIGINT twice) is not implemented for a pool of threads, and its
            # restart (SIGHUP) starts a command line that is not ours.
            warm = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGINT, warm)
            signal.signal(signal.SIGQUIT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if hangup is signal.SIG_IGN else warm)
            upkeep.start()

        def close(self, parent: object) -> None:
            drain.begin()

    # nohup: the process is to outlive its terminal.
    hangup = signal.getsignal(signal.SIGHUP)
    return DrainStep
