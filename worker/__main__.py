"""``python -m worker`` is ``promptmill-worker``: how a local run starts its workers."""

from jobs.console import run_app


def _run() -> None:
    from worker.cli import app

    app()


if __name__ == "__main__":
    run_app(_run)
