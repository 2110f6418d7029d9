"""How long a job takes, by what workers have shown; and what is said where they have shown nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.ledger import Shown, WorkerInfo
from jobs.settings import Settings
from jobs.store import Store
from producer.check import check
from producer.cli.check_text import over_sentences, report_text
from producer.estimate import duration, estimate
from producer.fleet import Fleet
from producer.forecast import Forecast, for_submit, prepare
from producer.rows import RowOptions
from producer.sources import rows_source
from producer.tokens import Meter, Over, Tokens
from tests.patience import PATIENCE_S

#: 100 prompt tokens and 900 more that are generated at most.
TOKENS = Tokens(0, 10, 100, 10, 100, 900, (10,), 4.0, "guessed")


def shown(rows_per_s: float = 2.0, prompts: float = 20.0, outputs: float = 80.0, **known: Any) -> Shown:
    given = {"context": 128, "chars_per_token": 3.0, "max_tokens_used": 0.5, "at": time.time() - 100, **known}
    return Shown(rows_per_s=rows_per_s, prompt_tokens_per_s=prompts, tokens_per_s=outputs, **given)


def worker(name: str, what: Shown) -> WorkerInfo:
    return WorkerInfo(
        id=name, model="copy", fingerprint="f", host="h", pid=1, device="cpu", dtype="float32", engine="inflight",
        revision="r", slots=2, version="0", started_at=0.0, shown=what,
    )  # fmt: skip


def fleet(*workers: Shown, last: Shown | None = None, waiting: int = 0) -> Fleet:
    return Fleet("copy", [worker(f"w{n}", what) for n, what in enumerate(workers)], last, waiting)


def text(given: Fleet, **options: Any) -> str:
    """What people are told of a small source whose model has these workers."""
    forecast = Forecast(for_submit(given), given.context, "live workers of 'copy'", given)
    report = check(rows_source([{"prompt": "x" * 400}, {"prompt": "a lamp"}]), RowOptions(), meter=forecast.meter)
    forecast.conclude(report.tokens, report.result_rows)
    report.notes = forecast.notes
    return report_text(report, forecast, 0.1)


def test_the_tokens_of_a_job_by_those_of_all_workers_each_second() -> None:
    found = estimate(TOKENS, 10, fleet(shown(), shown()))
    assert found is not None
    assert (found.tokens_per_s, found.workers, found.output_tokens) == (200.0, 2, 450)
    assert (found.seconds, found.seconds_at_most) == (550 / 200, 1_000 / 200)
    assert found.rows_per_s == 10 / found.seconds
    assert found.basis == "2 live workers of 'copy', with work 100 s ago"
    assert found.notes == ()


def test_outputs_count_whole_where_nobody_knows_how_long_they_become() -> None:
    found = estimate(TOKENS, 10, fleet(shown(max_tokens_used=0.0)))
    assert found is not None
    assert found.seconds == found.seconds_at_most == 10
    assert found.max_tokens_used is None


def test_a_worker_that_has_not_worked_yet_counts_as_fast_as_the_last_that_did() -> None:
    fresh = Shown(context=128)
    found = estimate(TOKENS, 10, fleet(shown(), fresh, last=shown(outputs=180.0)))
    assert found is not None
    assert found.tokens_per_s == 300.0
    assert "of which 1 count as fast as the last that had work" in found.basis
    alone = estimate(TOKENS, 10, fleet(shown(), fresh))
    assert alone is not None
    assert alone.basis == "2 live workers of 'copy', of which 1 have shown their speed"


def test_without_live_workers_one_like_the_last_is_assumed() -> None:
    found = estimate(TOKENS, 10, fleet(last=shown(at=time.time() - 7_500)))
    assert found is not None
    assert (found.workers, found.tokens_per_s) == (0, 100.0)
    assert found.basis == "no worker of 'copy' lives: by one like the last, 2.1 h ago"


@pytest.mark.parametrize("given", [fleet(), fleet(Shown(context=128))])
def test_nothing_shown_is_no_estimate(given: Fleet) -> None:
    assert estimate(TOKENS, 10, given) is None


def test_nothing_to_do_is_no_estimate() -> None:
    assert estimate(Tokens(0, 0, 0, 0, 0, 0, (), 4.0, ""), 0, fleet(shown())) is None


def test_work_of_another_kind_and_other_work_make_it_less_sure() -> None:
    long_prompts = Tokens(0, 10, 90_000, 9_000, 90_000, 900, (10,), 4.0, "guessed")
    found = estimate(long_prompts, 10, fleet(shown(), waiting=3))
    assert found is not None
    assert found.notes == (
        "the work behind this estimate had 0.25 prompt tokens for each generated one, these rows have 2e+02: "
        "it may take from 6 s to 75 min",
        "3 batches wait for the same workers: a new job shares them, and takes longer",
    )


def test_a_fleet_takes_what_its_smallest_context_takes() -> None:
    assert fleet(shown(), shown(context=64), Shown()).context == 64
    assert fleet(Shown(), last=shown()).context is None
    assert fleet(last=shown()).context == 128
    assert fleet().context is None
    assert fleet(shown(), shown(chars_per_token=5.0)).chars_per_token == 4.0
    assert for_submit(fleet(last=shown())) is None
    assert for_submit(fleet(Shown())) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "less than 1 s"), (1, "1 s"), (119, "119 s"), (120, "2.0 min"), (3_000, "50 min"), (7_200, "2.0 h"),
     (90_000, "25 h"), (172_800, "2.0 days"), (5e7, "579 days")],
)  # fmt: skip
def test_durations_are_in_the_unit_that_people_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words


class TestLook:
    """The workers are asked for a few seconds at most, and what is wrong is said."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        Store.open(str(tmp_path / "store"), create=True)
        return Settings(store=str(tmp_path / "store"), redis_url="redis://127.0.0.1:1/0")

    def test_no_store_no_redis_and_no_url(self, settings: Settings, tmp_path: Path) -> None:
        away = settings.model_copy(update={"store": str(tmp_path / "none")})
        assert "no Promptmill store at" in str(Fleet.look(away, "copy", PATIENCE_S).unknown)
        assert not (tmp_path / "none").exists()
        assert "cannot be reached" in str(Fleet.look(settings, "copy", PATIENCE_S).unknown)
        wrong = settings.model_copy(update={"redis_url": "http://here"})
        assert "the Redis URL cannot be read" in str(Fleet.look(wrong, "copy", PATIENCE_S).unknown)

    def test_a_redis_that_says_nothing_is_not_waited_for(self, settings: Settings) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            silent = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{mute.getsockname()[1]}"})
            found = Fleet.look(silent, "copy", patience_s=0.2)
        assert found.unknown == "the store or Redis does not answer within 0.2 s"

    def test_a_server_that_is_no_redis_is_called_so(self, settings: Settings) -> None:
        with socket.create_server(("127.0.0.1", 0)) as web:

            def answer() -> None:
                connection, _ = web.accept()
                with connection:
                    connection.recv(1_000)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

            server = Thread(target=answer)
            server.start()
            wrong = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{web.getsockname()[1]}"})
            assert "answers, but is no Redis" in str(Fleet.look(wrong, "copy", PATIENCE_S).unknown)
            server.join()


class TestPrepare:
    """What is known before the first row is read, by what the command line names."""

    @pytest.fixture
    def nowhere(self, tmp_path: Path) -> Settings:
        return Settings(store=str(tmp_path / "none"), redis_url="redis://127.0.0.1:1/0")

    def test_nothing_named_asks_nobody(self, nowhere: Settings) -> None:
        assert prepare(nowhere, None, None, None) == Forecast()

    def test_a_tokenizer_counts_and_its_folder_knows_the_context(self, nowhere: Settings, model_folder: Path) -> None:
        for model, tokenizer in ((None, str(model_folder)), (f"copy={model_folder}", None), (str(model_folder), None)):
            found = prepare(nowhere, model, tokenizer, None)
            assert type(found.meter).__name__ == "CountingMeter"
            assert (found.context, found.context_from) == (64, f"the config.json of {model_folder}")
            assert not found.notes

    def test_a_context_that_was_given_overrules_the_folder(self, nowhere: Settings, model_folder: Path) -> None:
        found = prepare(nowhere, None, str(model_folder), 9)
        assert (found.context, found.context_from) == (9, "--context")

    def test_a_model_without_a_tokenizer_is_estimated_and_says_so(self, nowhere: Settings, tmp_path: Path) -> None:
        found = prepare(nowhere, f"copy={tmp_path}", None, None)
        assert type(found.meter) is Meter
        assert found.notes == [f"tokens are estimated: the folder {tmp_path} has no tokenizer.json"]
        assert prepare(nowhere, "copy", None, None).notes == []

    def test_a_tokenizer_that_was_asked_for_is_an_error_where_there_is_none(
        self, nowhere: Settings, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match=r"has no tokenizer\.json"):
            prepare(nowhere, None, str(tmp_path), None)
        with pytest.raises(InputError, match=r"--exact-tokens needs a tokenizer: tokens are estimated: the folder"):
            prepare(nowhere, f"copy={tmp_path}", None, None, every_token=True)
        with pytest.raises(InputError, match=r"--exact-tokens needs a tokenizer: name the model's with --tokenizer"):
            prepare(nowhere, None, None, None, every_token=True)


def test_people_are_told_all_of_it_in_80_columns() -> None:
    told = text(fleet(shown(), shown(), waiting=1))
    assert max(map(len, told.splitlines())) <= 80
    assert told.splitlines()[1].startswith("  rows      2, none bad; 1 batch of 256")
    assert "context   128 tokens (live workers of 'copy')" in told
    assert "at most 126 tokens, in 2 texts; about 63, if they use 50% of" in told
    assert "time      less than 1 s, at most 1 s (" in told
    assert "  128-255  1  █" in told
    assert "\nwarning: probably 1 row too long for the context of 128 tokens" in told
    assert "\n  rows:1: about 134 tokens\n" in told
    assert "\n  rows:2: about 2 tokens and 256 of max_tokens\n" in told
    assert "\nnote: 1 batch waits for the same workers" in told


def test_people_are_told_why_there_is_no_estimate() -> None:
    assert "no worker of 'copy' has had work yet" in text(fleet(Shown(context=128))).replace("\n      ", " ")
    assert "start one, submit a few of the rows" in text(fleet()).replace("\n      ", " ")
    assert "no estimate of the time: Redis is away" in text(Fleet("copy", unknown="Redis is away"))


def test_what_is_known_for_sure_is_not_called_probable() -> None:
    tokens = Tokens(2, 0, 9, 9, 9, 9, (), 4.0, "counted", too_long=Over(2, 2), cut=Over(2, 1))
    sentences = [sentence for sentence, _ in over_sentences(tokens, 1_000)]
    assert sentences == [
        "warning: 2 rows too long for the context of 1,000 tokens (error rows: prompt_too_long)",
        "warning: probably 2 rows that may be cut: prompt and max_tokens exceed the context of 1,000 tokens",
    ]
