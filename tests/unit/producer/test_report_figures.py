"""The figures of a report, checked against DuckDB over the same Parquet file."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.results import result_schema
from producer.report.figures import COLUMNS, FigureCounter
from producer.report.lengths import LengthCounter
from producer.report.model import Figures
from producer.report.timeline import TimelineCounter

SUBMITTED = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
SCHEMA = result_schema(())


def at(seconds: float) -> datetime:
    return SUBMITTED + timedelta(seconds=seconds)


def us(moment: datetime) -> int:
    """Microseconds since the epoch."""
    return round(moment.timestamp() * 1e6)


def row(index: int, **values: Any) -> dict[str, Any]:
    common = {"row_index": index, "sample_index": 0, "status": "ok", "attempt": 1}
    return {**dict.fromkeys(SCHEMA.names), **common, **values}


def random_rows(count: int) -> list[dict[str, Any]]:
    """Two samples of each prompt; errors, cancelled rows, rows taken over, three workers, a standstill of 200 s."""
    dice, rows = random.Random(7), []
    for place in range(count):
        index, sample = divmod(place, 2)
        done = dice.uniform(10, 900)
        done += 200 if done > 400 else 0
        kind = dice.choices(["ok", "error", "cancelled", "carried"], [90, 5, 3, 2])[0]
        common = {"sample_index": sample, "custom_id": f"id-{index}", "worker": f"host-{dice.randint(1, 3)}",
                  "attempt": dice.choice([1, 1, 1, 2]), "started_at": at(done - 5), "finished_at": at(done),
                  "model_revision": "abc"}  # fmt: skip
        if kind == "cancelled":
            rows.append(row(index, sample_index=sample, status=kind, attempt=None))
        elif kind == "error":
            code = dice.choice(["prompt_too_long", "numeric_error"])
            rows.append(
                row(index, **common, status="error", error_code=code, error_message="no", finish_reason="error")
            )
        else:
            if kind == "carried":
                common |= {"started_at": at(-500), "finished_at": at(-400)}
            rows.append(
                row(index, **common, finish_reason=dice.choice(["stop", "length"]), prompt_tokens=dice.randint(3, 900),
                    completion_tokens=int(dice.lognormvariate(4, 1)))
            )  # fmt: skip
    return rows


def figures_of(table: pa.Table, until: datetime | None = None) -> Figures:
    counter = FigureCounter(SUBMITTED)
    for batch in table.select(COLUMNS).to_batches(max_chunksize=700):
        counter.add(pa.Table.from_batches([batch]))
    return counter.figures(until)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(random_rows(6_000), schema=SCHEMA), path)
    return path


@pytest.fixture(scope="module")
def figures(file: Path) -> Figures:
    return figures_of(pq.read_table(file))


@pytest.fixture
def ask(file: Path) -> Any:
    def query(sql: str) -> list[tuple[Any, ...]]:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(f"CREATE VIEW r AS FROM '{file}'")
            connection.execute(f"CREATE VIEW own AS FROM r WHERE finished_at >= '{SUBMITTED.isoformat()}'")
            return connection.execute(sql).fetchall()

    return query


def test_rows_and_their_ends(figures: Figures, ask: Any) -> None:
    assert figures.rows == 6_000
    assert list(figures.ends.items()) == ask(
        "SELECT coalesce(finish_reason, status), count(*) AS n FROM r GROUP BY 1 ORDER BY n DESC"
    )
    assert [(figures.repeated,)] == ask("SELECT count(*) FROM r WHERE attempt > 1")
    assert [(figures.carried,)] == ask(f"SELECT count(*) FROM r WHERE finished_at < '{SUBMITTED.isoformat()}'")
    assert figures.revisions == ("abc",)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("prompt", "FROM r WHERE status = 'ok' AND sample_index = 0"), ("completion", "FROM r WHERE status = 'ok'")],
)
def test_lengths(figures: Figures, ask: Any, name: str, rows: str) -> None:
    found, column = getattr(figures, f"{name}_lengths"), f"{name}_tokens"
    [expected] = ask(
        f"SELECT count({column}), sum({column}), min({column}), quantile_disc({column}, 0.5), "
        f"quantile_disc({column}, 0.95), max({column}) {rows}"
    )
    assert (found.count, found.total, found.least, found.median, found.p95, found.most) == expected
    assert sum(item.rows for item in found.bins) == found.count
    for item in found.bins:
        bound = f"AND {column} < {item.high}" if item.high is not None else ""
        assert [(item.rows,)] == ask(f"SELECT count(*) {rows} AND {column} >= {item.low} {bound}")


def test_failures_and_their_first_rows(figures: Figures, ask: Any) -> None:
    assert [(found.code, found.rows) for found in figures.failures] == ask(
        "SELECT error_code, count(*) AS n FROM r WHERE error_code IS NOT NULL GROUP BY 1 ORDER BY n DESC"
    )
    for found in figures.failures:
        shown = [(sample.row_index, sample.sample_index, sample.custom_id, sample.message) for sample in found.samples]
        assert shown == ask(
            "SELECT row_index, sample_index, custom_id, error_message FROM r "
            f"WHERE error_code = '{found.code}' ORDER BY 1, 2 LIMIT 5"
        )


def test_workers(figures: Figures, ask: Any) -> None:
    shares = [(found.worker, found.rows, found.tokens, us(found.first), us(found.last)) for found in figures.workers]

    assert shares == ask(
        "SELECT worker, count(*) AS n, sum(completion_tokens), epoch_us(min(started_at)), epoch_us(max(finished_at)) "
        "FROM own GROUP BY 1 ORDER BY n DESC"
    )
    for found in figures.workers:
        seconds = (found.last - found.first).total_seconds()
        assert found.rows_per_s == pytest.approx(found.rows / seconds, abs=1e-3)
        assert found.tokens_per_s == pytest.approx(found.tokens / seconds, abs=1e-3)


def test_the_timeline_has_every_row_in_its_interval(figures: Figures, ask: Any) -> None:
    timeline = figures.timeline
    assert timeline is not None
    place_of = f"(epoch_us(finished_at) - {us(timeline.start)}) // {round(timeline.interval_s * 1e6)}"
    counted = ask(f"SELECT {place_of}, count(*), sum(coalesce(completion_tokens, 0)) FROM own GROUP BY 1")
    expected = {place: (rows, tokens) for place, rows, tokens in counted}

    assert len(timeline.intervals) <= 121
    for place, interval in enumerate(timeline.intervals):
        assert (interval.rows, interval.tokens) == expected.pop(place, (0, 0))
    assert not expected
    [(first, last, rows, tokens)] = ask(
        "SELECT epoch_us(min(started_at)), epoch_us(max(finished_at)), count(*), sum(completion_tokens) FROM own"
    )
    assert 0 <= first - us(timeline.start) < timeline.interval_s * 1e6
    assert us(timeline.end) == last
    assert figures.rows_per_s == pytest.approx(rows / (last - first) * 1e6, abs=1e-3)
    assert figures.tokens_per_s == pytest.approx(tokens / (last - first) * 1e6, abs=1e-3)


def test_a_standstill_is_found(figures: Figures) -> None:
    assert figures.timeline is not None
    [still] = figures.timeline.standstills

    assert still.seconds == pytest.approx(200, abs=5)
    assert still.start == pytest.approx(at(400), abs=timedelta(seconds=5))


def test_a_job_that_runs_stands_still_up_to_now() -> None:
    rows = [row(i, started_at=at(0), finished_at=at(i), worker="w") for i in range(1, 60)]
    timeline = figures_of(pa.Table.from_pylist(rows, schema=SCHEMA), until=at(300)).timeline

    assert timeline is not None
    assert timeline.end == at(300)
    assert [round(still.seconds) for still in timeline.standstills] == [241]


def test_slow_rows_are_no_standstill() -> None:
    rows = [row(i, started_at=at(0), finished_at=at(60 * i), worker="w") for i in range(1, 30)]
    timeline = figures_of(pa.Table.from_pylist(rows, schema=SCHEMA)).timeline

    assert timeline is not None
    assert timeline.standstills == ()


def test_no_rows_have_no_timeline() -> None:
    rows = [row(0, status="cancelled"), row(1, status="error", error_code="invalid_row", finish_reason="error")]

    assert figures_of(pa.Table.from_pylist([], schema=SCHEMA)) == Figures()
    found = figures_of(pa.Table.from_pylist(rows, schema=SCHEMA))
    assert (found.timeline, found.workers, found.rows_per_s) == (None, (), 0.0)
    assert found.ends == {"cancelled": 1, "error": 1}


def test_a_year_of_rows_is_counted_in_few_intervals() -> None:
    counter, dice = TimelineCounter(), random.Random(3)
    year = 365 * 86_400
    for _ in range(20):
        done = [int(at(dice.uniform(0, year)).timestamp() * 1e6) for _ in range(1_000)]
        counter.add(pa.table({"started_at": done, "finished_at": done, "completion_tokens": [2] * 1_000}))
    timeline = counter.timeline()

    assert len(counter._counts) <= 4_096
    assert timeline is not None
    assert sum(interval.rows for interval in timeline.intervals) == 20_000
    assert sum(interval.tokens for interval in timeline.intervals) == 40_000


def test_a_few_very_long_rows_do_not_flatten_the_histogram() -> None:
    counter = LengthCounter()
    counter.add(pa.chunked_array([[*range(10, 110)] * 10, [100_000]]))
    bins = counter.lengths().bins

    assert (bins[-1].high, bins[-1].rows) == (None, 1)
    assert 20 <= len(bins) <= 40
    assert all(before.high == after.low for before, after in pairwise(bins))
