"""Flags, templates and column names that cannot be: told by name, with what was perhaps meant; nothing is enqueued."""

from __future__ import annotations

import pytest

from tests.mill import Mill
from tests.refusals import GOOD, assert_refused, submit

#: A byte of the command line that is not UTF-8, as Python shows it.
BYTE = "\udcff"

FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "temperature": (("--temperature", "-0.5"), "--temperature -0.5: use a number from 0 to 100"),
    "temperature that is no number": (("--temperature", "nan"), "--temperature"),
    "top_p": (("--top-p", "1.5"), "--top-p"),
    "top_k": (("--top-k", "-1"), "--top-k"),
    "min_p": (("--min-p", "2"), "--min-p"),
    "max_tokens": (("--max-tokens", "0"), "--max-tokens"),
    "max_tokens beyond 64 bits": (("--max-tokens", "9" * 25), "from 1 to 1000000"),
    "repetition_penalty": (("--repetition-penalty", "0"), "--repetition-penalty"),
    "n": (("--n", "0"), "--n"),
    "seed": (("--seed", "-1"), "--seed"),
    "stop": (("--stop", ""), "--stop"),
    "stop of 1,001 characters": (("--stop", "x" * 1001), "--stop"),
    "17 stops": (tuple(word for i in range(17) for word in ("--stop", f"s{i}")), "at most 16"),
    "stop token": (("--stop-token-id", "-1"), "--stop-token-id"),
    "stop token beyond 64 bits": (("--stop-token-id", "9" * 25), "--stop-token-id"),
    "batch size": (("--batch-size", "0"), "--batch-size"),
    "batch size of a billion": (("--batch-size", "1000000000"), "--batch-size"),
    "priority": (("--priority", "9"), "--priority"),
    "error rate": (("--max-error-rate", "1.5"), "--max-error-rate"),
    "error rate that is no number": (("--max-error-rate", "nan"), "--max-error-rate"),
    "job id with a slash": (("--job-id", "a/b"), "a/b"),
    "job id that is empty": (("--job-id", ""), "job id ''"),
    "job id that is too long": (("--job-id", "x" * 57), "1 to 56"),
    "job id with dots": (("--job-id", "../up"), "../up"),
    "job id with a line break": (("--job-id", "a\nb"), "a\\nb"),
    "job id that is not UTF-8": (("--job-id", BYTE), "job id"),
    "deadline": (("--deadline", "soon"), "use 90s, 30m"),
    "deadline in weeks": (("--deadline", "6w"), "use 90s, 30m"),
    "deadline of ages": (("--deadline", "9" * 400 + "d"), "use 90s, 30m"),
    "deadline in the thirteenth month": (("--deadline", "2030-13-01T00:00:00Z"), "use 90s, 30m"),
    "deadline without a zone": (("--deadline", "2030-01-01"), "add Z"),
    "deadline of now": (("--deadline", "0s"), "already passed"),
    "deadline that has passed": (("--deadline", "2001-01-01T00:00:00Z"), "already passed"),
    "label without a value": (("--label", "novalue"), "KEY=VALUE"),
    "label without a key": (("--label", "=v"), "KEY=VALUE"),
    "label with a line break": (("--label", "a\nb=c"), "control character"),
    "label of 201 characters": (("--label", "a=" + "x" * 201), "at most 200"),
    "label that is not UTF-8": (("--label", f"{BYTE}=v"), "--label"),
    "label twice": (("--label", "a=1", "--label", "a=2"), "given twice"),
    "65 labels": (tuple(word for i in range(65) for word in ("--label", f"k{i}=v")), "more than 64"),
    "system message that is not UTF-8": (("--system", BYTE), "--system"),
    "columns kept and dropped": (("--keep-columns", "prompt", "--drop-columns", "a"), "exclude each other"),
    "template and prompt column": (("--template", "{prompt}", "--prompt-column", "prompt"), "exclude each other"),
    # Templates.
    "template that is empty": (("--template", ""), "empty"),
    "template with a lone brace": (("--template", "about {title"), "column 7: '{' is never closed"),
    "template with a lone closing brace": (("--template", "a } b"), "column 3: '}' closes nothing"),
    "template with an empty field": (("--template", "a {}"), "names no column"),
    "template that looks into a value": (("--template", "{prompt.upper}"), "not a plain column name"),
    "template with a format": (("--template", "{prompt:>5}"), "not a plain column name"),
    "template that is not UTF-8": (("--template", f"{BYTE} {{prompt}}"), "the template is not UTF-8"),
    "template file that is missing": (("--template", "@nowhere.txt"), "'nowhere.txt' cannot be read"),
    "template file that is a folder": (("--template", "@."), "directory"),
    "template file without a name": (("--template", "@"), "cannot be read"),
    "template file that is not UTF-8": (("--template", "@latin.txt"), "latin.txt: not UTF-8 at byte 4"),
    "template file with a lone brace": (("--template", "@brace.txt"), "brace.txt: template, line 2, column 1"),
    # Columns.
    "template field": (("--template", "About {promt}"), "did you mean 'prompt'?"),
    "prompt column": (("--prompt-column", "promt"), "did you mean 'prompt'?"),
    "prompt column of another case": (("--prompt-column", "Prompt"), "did you mean 'prompt'?"),
    "messages column": (("--messages-column", "pompt"), "did you mean 'prompt'?"),
    "id column": (("--id-column", "nunber"), "did you mean 'number'?"),
    "column to keep": (("--keep-columns", "prompt,numbr"), "did you mean 'number'?"),
    "column to drop": (("--drop-columns", "numbers"), "did you mean 'number'?"),
    "column that colours the terminal": (("--prompt-column", "\x1b[31m"), "'\\x1b[31m'"),
    "format": (("--format", "yaml"), "'yaml' is not known"),
}


@pytest.mark.parametrize("what", FLAGS)
def test_a_bad_flag_is_told_by_its_name_or_value(idle: Mill, what: str) -> None:
    flags, said = FLAGS[what]
    idle.write("latin.txt", b"caf\xe9 {prompt}")
    idle.write("brace.txt", "one\n{\n")

    assert_refused(idle, submit(idle, idle.write("good.jsonl", b'{"prompt": "a", "number": 1}\n'), *flags), said)


@pytest.mark.parametrize("flag", ["--template", "--system"])
def test_check_refuses_what_is_not_utf_8_alike(idle: Mill, flag: str) -> None:
    done = idle.call("check", idle.write("good.jsonl", GOOD), flag, f"{BYTE} {{prompt}}", "--show", "1")

    assert_refused(idle, done, "is not UTF-8")


@pytest.mark.parametrize("arguments", [("--nonsense", "1"), ("--max-tokens", "many"), ("--seed", "9" * 5000)])
def test_a_flag_that_the_command_line_cannot_read_exits_2(idle: Mill, arguments: tuple[str, str]) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD), *arguments)

    assert (done.code, done.out, idle.job_files()) == (2, "", [])
    assert arguments[0] in done.err


@pytest.mark.parametrize("model", ["", "a b", "x" * 201, BYTE, "=x", "a="])
def test_a_bad_model_name_is_told(idle: Mill, model: str) -> None:
    done = idle.call("submit", idle.write("good.jsonl", GOOD), "--model", model)

    assert_refused(idle, done, "--model", "use NAME or NAME=PATH_OR_ID")


def test_an_exporter_lists_no_model_that_there_cannot_be(idle: Mill) -> None:
    done = idle.call("exporter", "--model", "good", "--model", 'bad"')

    assert_refused(idle, done, "--model", "use NAME or NAME=PATH_OR_ID")


@pytest.mark.parametrize(
    ("given", "meant"), [("nightly-copy-2026-1l", "nightly-copy-2026-11"), ("weekly", "weekly-report"), ("moon", None)]
)
def test_a_job_that_is_unknown_is_told_with_the_one_of_nearly_its_name(
    idle: Mill, given: str, meant: str | None
) -> None:
    for job in ("nightly-copy-2026-11", "weekly-report"):
        submit(idle, idle.write("good.jsonl", GOOD), "--job-id", job).ok()
    done = idle.call("status", given)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: no job {given!r} in the store ")
    assert ("did you mean" in done.err) == (meant is not None)
    assert meant is None or f"did you mean {meant!r}?" in done.err
