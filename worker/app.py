"""The worker process: model, engine, upkeep thread and Celery consumer, from start to drain."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from celery import signals
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from jobs import __version__
from jobs.errors import UnavailableError
from jobs.ledger import Ledger, WorkerInfo
from jobs.parquet import keep_pandas_out
from jobs.permits import Permits, make_app
from jobs.reconcile import Reconciler
from jobs.recover import warn_of_other_stores
from jobs.settings import Settings
from jobs.spec import now
from jobs.store import Store
from jobs.telemetry.exposition import Probes
from worker.context import WorkerContext
from worker.devices import shown
from worker.drain import Drain, drain_step
from worker.engine.build import EngineChoice, build_engine
from worker.engine.request import Engine, EngineLimits
from worker.heartbeat import EXIT_ENGINE, Upkeep
from worker.metrics import serve_metrics, watch_engine
from worker.models import LoadedModel, load_model
from worker.naming import worker_name
from worker.notify import Notifier
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
    #: As which it registers.
    name: str = field(default_factory=worker_name)
    #: A socket of the supervisor, which hears there when the worker serves.
    notify_fd: int | None = None


def run_worker(settings: Settings, options: WorkerOptions) -> int:
    """Serve a model until SIGTERM or SIGINT; the exit status, 0 if it was one of them that ended it.

    Raises InputError, ModelError, UnavailableError before the first claim.
    """
    keep_pandas_out()
    probes = Probes(ready=lambda: "the model is being loaded")
    notifier = Notifier.to_supervisor(options.notify_fd)
    if options.metrics_port is not None:
        serve_metrics(options.metrics_port, probes)
    store = Store.open(settings.store, create=True, wanted=settings.store_id)
    ledger = Ledger.connect(settings.redis, store.id, lease_s=settings.lease_s, sweep_s=settings.sweep_s, leads=True)
    ledger.require_worker()
    warn_of_other_stores(ledger, store)
    ledger.register_store(store.uri)
    # All that touches the model is done by one thread. OpenMP keeps a team of threads for each that ever did: with
    # more of them than cores, those of the engine sleep between two operations instead of waiting for the next.
    engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    context = engine_thread.submit(_load, settings, options, store, ledger).result()
    context.notifier = notifier
    context.engine.start(engine_thread)
    try:
        if options.metrics_port is not None:
            watch_engine(context)
        asked = consume(context, options, probes)
        if context.outdated is not None:
            raise context.outdated
        return 0 if asked else EXIT_ENGINE
    finally:
        context.engine.close()
        notifier.close()
        _unregister(ledger, context.registration.id)
        ledger.close()


def _unregister(ledger: Ledger, worker: str) -> None:
    """That Redis is away is no reason to end otherwise than for what ended the worker."""
    try:
        ledger.unregister(worker)
    except UnavailableError as error:
        _log.warning("this worker stays listed for half a minute: %s", error)


def _load(settings: Settings, options: WorkerOptions, store: Store, ledger: Ledger) -> WorkerContext:
    """The model and its engine, warm but not started. Raises ModelError."""
    return build_context(settings, options, store, ledger, model_for(options))


def model_for(options: WorkerOptions) -> LoadedModel:
    """The model that the options name. Raises ModelError."""
    return load_model(
        options.model,
        options.source,
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )


def build_context(
    settings: Settings, options: WorkerOptions, store: Store, ledger: Ledger, loaded: LoadedModel
) -> WorkerContext:
    """All that the tasks of this process share; the engine is warm, but not started. Raises ModelError."""
    engine, engine_name = engine_for(options, loaded)
    registration = WorkerInfo(
        id=options.name,
        model=options.model,
        fingerprint=loaded.fingerprint,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=shown(str(loaded.device), os.environ.get("CUDA_VISIBLE_DEVICES")),
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
