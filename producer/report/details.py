"""The lower half of the page: failures, workers, settings and files. Each section takes the report and gives itself, or
nothing where it has nothing to say."""

from __future__ import annotations

from producer.numbers import count, counted, moment, rate, share, size
from producer.report.blocks import NOTHING, clipped, fact_list, section, table, value_text
from producer.report.markup import Content, Html, element, join, theirs
from producer.report.model import Failures, Report

#: Workers, or files, that have a line of their own.
_SHOWN = 30
#: Characters of a template or system message.
_SHOWN_TEXT = 4_000


def failures(report: Report) -> Html:
    """The rows that failed, by code, each with examples."""
    found = report.figures.failures
    if not found:
        return NOTHING
    return section("Failures", *(_failure(item) for item in found))


def _failure(found: Failures) -> Html:
    rows = [
        [
            f"{sample.row_index:,}" + (f" / {sample.sample_index}" if sample.sample_index else ""),
            clipped(sample.custom_id),
            clipped(sample.message),
        ]
        for sample in found.samples
    ]
    number = counted(found.rows, "row")
    more = f"the first {len(rows)} of {number}" if found.rows > len(rows) else number
    return element(
        "div",
        element("h3", element("span", found.code, class_="bad"), " ", element("small", more)),
        element("div", table(["row", "id", "message"], rows, "fww"), class_="samples"),
        class_="failure",
    )


def workers(report: Report) -> Html:
    """Who did how much."""
    found = report.figures.workers
    if not found:
        return NOTHING
    most, done = max(item.rows for item in found), sum(item.rows for item in found)
    rows: list[list[Content]] = [
        [
            theirs(item.worker),
            element("i", style=f"width: {100 * item.rows / most:.2f}%"),
            count(item.rows),
            share(item.rows, done),
            count(item.tokens),
            rate(item.rows_per_s),
            rate(item.tokens_per_s),
        ]
        for item in found[:_SHOWN]
    ]
    rest = found[_SHOWN:]
    together = counted(sum(item.rows for item in rest), "row")
    note = f"And {count(len(rest))} more, with {together} together." if rest else None
    return section(
        "Workers",
        table(["worker", "", "rows", "share", "tokens", "rows/s", "tokens/s"], rows, "nmfffff"),
        element("p", note, class_="quiet") if note else None,
    )


def engine(report: Report) -> Html:
    """What the engine saved, as far as the manifest tells."""
    known = dict(report.engine)
    if not known:
        return NOTHING
    computed, shared = known.pop("computed_prompt_tokens", 0), known.pop("shared_prompt_tokens", 0)
    facts: list[tuple[str, Content]] = [
        ("Prompt tokens computed", count(computed)),
        ("Taken from rows that begin alike", f"{count(shared)} ({share(shared, shared + computed)})"),
        ("Rows answered by an identical row", count(known.pop("repeated_rows", 0))),
        *((name.replace("_", " "), f"{value:,}") for name, value in known.items() if isinstance(value, int | float)),
    ]
    return section("Engine", fact_list(facts))


def settings(report: Report) -> Html:
    """What was asked for."""
    job, status = report.job, report.status
    spec = job.spec
    sampling = {name: value for name, value in spec.sampling.model_dump().items() if value not in (None, (), [])}
    facts: list[tuple[str, Content]] = [
        ("Model", theirs(spec.model)),
        ("Revision", join(element("div", theirs(revision)) for revision in report.figures.revisions)),
        (
            "Rows",
            f"{counted(job.rows, 'prompt')} in {counted(job.batches, 'batch', 'batches')} of {count(spec.batch_size)}",
        ),
        ("Sampling", ", ".join(f"{name} {value_text(value)}" for name, value in sampling.items())),
        ("Chat template", "yes" if spec.chat else "no"),
        ("Priority", str(status.priority)),
        ("Deadline", moment(status.deadline) or "none"),
        ("Pauses when", f"more than {100 * spec.max_error_rate:g} % of its rows have failed"),
        ("Labels", join(element("div", theirs(f"{key}={value}")) for key, value in spec.labels.items()) or None),
        ("Source columns", theirs(", ".join(column.name for column in job.columns)) if job.columns else None),
        ("Invalid rows let through", count(job.invalid) if job.invalid else None),
        ("Digest", element("code", job.digest)),
        ("Submitted by", f"promptmill {job.producer_version}" if job.producer_version else None),
    ]
    return section(
        "Settings",
        fact_list([(name, value) for name, value in facts if value]),
        *(
            join([element("h3", name, style="margin-top: 1rem"), element("pre", clipped(text, _SHOWN_TEXT))])
            for name, text in (("System message", spec.system), ("Template", spec.template))
            if text
        ),
    )


def reading(report: Report) -> Html:
    """Where the rows are, and how to read them."""
    place = report.status.results
    if report.partial or place is None:
        command = f"promptmill results {report.status.id} --partial --to rows.jsonl"
        return section("Reading the rows", element("p", "The finished batches:"), element("pre", command))
    pattern = f"{place}/*.parquet"
    quoted = pattern.replace("'", "''")
    rows = [
        [element("code", str(item["path"])), count(item["rows"]), size(item["bytes"]), element("code", item["sha256"])]
        for item in report.files[:_SHOWN]
    ]
    more = len(report.files) - len(rows)
    return section(
        "The dataset",
        element("p", element("code", place)),
        table(["file", "rows", "size", "SHA-256"], rows, "nffw"),
        element("p", f"And {count(more)} more files.", class_="quiet") if more else None,
        element("h3", "DuckDB", style="margin-top: 1rem"),
        element("pre", f"SELECT status, count(*), avg(completion_tokens)\nFROM '{quoted}' GROUP BY status;"),
        element("h3", "Polars", style="margin-top: 1rem"),
        element("pre", f'import polars as pl\n\npl.scan_parquet({pattern!r}).select("custom_id", "text").collect()'),
    )
