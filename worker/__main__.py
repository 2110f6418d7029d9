"""``python -m worker`` is ``promptmill-worker``: how a local run starts its workers."""

from worker.cli import main

if __name__ == "__main__":
    main()
