"""What every refusal of bad input has in common."""

from __future__ import annotations

from jobs.ledger.keys import prefix
from tests.mill import Mill
from tests.outcome import Outcome

#: A row that nothing is wrong with, as JSON Lines.
GOOD = b'{"prompt": "a good row"}\n'


def submit(mill: Mill, *arguments: str, stdin: bytes = b"", **env: str) -> Outcome:
    return mill.call("submit", *arguments, "--model", "nobody", stdin=stdin, **env)


def assert_refused(mill: Mill, done: Outcome, *said: str, code: int = 2) -> None:
    """Exit code, one line on stderr that says all of ``said``, no traceback, and nothing left behind."""
    assert (done.code, done.out) == (code, ""), done
    assert "Traceback" not in done.err
    assert "internal error" not in done.err
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 2_000
    for words in said:
        assert words in lines[0]
    assert_nothing_enqueued(mill)


def assert_nothing_enqueued(mill: Mill) -> None:
    """No job in the store, no stage left behind, and nothing of a job in Redis."""
    assert mill.job_files() == []
    assert mill.stages() == []
    if (mill.store_path / "_promptmill.json").is_file() and '"version": 99' not in _store_file(mill):
        with mill.redis() as client:
            kept = {key.removeprefix(prefix(mill.store.id)) for key in client.keys(f"*{mill.store.id}*")}
        # What says which server this is, and no more.
        assert kept <= {"epoch", "layout", "run_id"}


def _store_file(mill: Mill) -> str:
    return (mill.store_path / "_promptmill.json").read_text()
