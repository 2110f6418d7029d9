"""Sources: what is read, what is refused, and where the refusal points."""

from __future__ import annotations

import gzip
import io
import os
import re
from pathlib import Path

import pytest

from jobs.errors import InputError, Problem, SourceError
from producer.sources import Source, SourceRow, delimited, lines, open_source


class Pipe(io.BytesIO):
    """A pipe whose writer gave it these blocks one by one."""

    def __init__(self, blocks: list[bytes]) -> None:
        super().__init__(b"".join(blocks))
        self._sizes = iter(list(map(len, blocks)))

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.read(next(self._sizes, 0))


def written(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def values(source: Source) -> list[tuple[int, dict[str, object]]]:
    rows = list(source)
    assert all(isinstance(row, SourceRow) for row in rows), rows
    return [(row.line, row.values) for row in rows if isinstance(row, SourceRow)]


def only_problem(folder: Path, name: str, content: bytes | str, **options: str) -> Problem:
    """The one problem of a source, whether it comes with the rows or ends them."""
    path = written(folder, name, content)
    found = []
    try:
        found += [item for item in open_source(path, **options) if isinstance(item, Problem)]
    except SourceError as error:
        found += error.problems
    assert len(found) == 1, found
    assert found[0].file == path
    assert "\n" not in str(found[0])
    return found[0]


class TestJsonLines:
    def test_gives_rows_with_their_lines(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.jsonl", '{"a": 1}\n{"b": "x", "c": [true, null]}\n')
        assert values(open_source(path)) == [(1, {"a": 1}), (2, {"b": "x", "c": [True, None]})]

    @pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
    def test_accepts_a_bom_blank_lines_and_both_line_ends(self, tmp_path: Path, ending: bytes) -> None:
        content = ending.join([b'\xef\xbb\xbf{"a": 1}', b"", b"  ", b'{"a": 2}'])
        assert values(open_source(written(tmp_path, "a.jsonl", content))) == [(1, {"a": 1}), (4, {"a": 2})]

    def test_accepts_a_last_line_without_a_line_end(self, tmp_path: Path) -> None:
        assert values(open_source(written(tmp_path, "a.ndjson", '{"a": 1}'))) == [(1, {"a": 1})]

    def test_keeps_integers_beyond_64_bits(self, tmp_path: Path) -> None:
        big = 123456789012345678901234567890
        path = written(tmp_path, "a.jsonl", f'{{"a": {big}, "b": [{{"c": -{big}}}], "d": 1e30}}\n')
        assert values(open_source(path)) == [(1, {"a": big, "b": [{"c": -big}], "d": 1e30})]

    @pytest.mark.parametrize("text", [r'{"a\"": "\\", "b": "\\\" \u0022"}', r'{"a": "\\\\", "\\": "\""}', r'{"": ""}'])
    def test_does_not_mistake_escaped_quotes_for_duplicate_keys(self, tmp_path: Path, text: str) -> None:
        assert len(values(open_source(written(tmp_path, "a.jsonl", text)))) == 1

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
            (b'{"a": {"b": "\\"", "b": "\\\\"}}', "the key 'b' occurs twice"),
            (b'{"a": NaN}', "NaN is not JSON"),
            (b'{"a": -Infinity}', "-Infinity is not JSON"),
            (b'{"a": 1e999}', "too large for a float (column 7)"),
            (b'{"a": "\\ud800"}', "half of a surrogate pair"),
            (b'{"a": tru}', "malformed JSON at column 7"),
            (b'{"a": 1} {"a": 2}', "malformed JSON at column 10"),
            (b'{"a": "caf\xe9"}', "byte 0xE9 at position 11 is not UTF-8"),
            (b'{"a": "x\x00"}', "NUL byte"),
            (b'["a"]', "holds an array"),
            (b"null", "holds null"),
            (b'"a"', "holds a string"),
            (b"[" * 100_000, "nested more than 200 levels deep"),
            (b"[1" + b"0" * 5000 + b"]", "thousands of digits"),
        ],
    )  # fmt: skip
    def test_refuses_a_bad_line_by_its_number(self, tmp_path: Path, line: bytes, reason: str) -> None:
        problem = only_problem(tmp_path, "a.jsonl", b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
        assert problem.line == 3
        assert reason in problem.reason

    @pytest.mark.parametrize("cut", range(1, 26))
    def test_says_of_a_cut_last_line_that_the_file_seems_cut(self, tmp_path: Path, cut: int) -> None:
        last = '{"a": "text \\" of", "b": 1}'[:cut]
        problem = only_problem(tmp_path, "a.jsonl", '{"a": 1}\n' + last)
        assert problem.line == 2
        assert "the file seems cut" in problem.reason

    def test_refuses_a_line_that_is_too_long_and_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lines, "MAX_LINE", 100)
        path = written(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": "%s"}\n{"a": 3}\n' % (b"x" * 1000))
        first, second, third = open_source(path)
        assert isinstance(second, Problem)
        assert second.line == 2
        assert [first.line, third.line] == [1, 3]


class TestDelimited:
    def test_gives_strings(self, tmp_path: Path) -> None:
        source = open_source(written(tmp_path, "a.csv", "id,price,note\n007,1.50,\n"))
        assert values(source) == [(2, {"id": "007", "price": "1.50", "note": ""})]
        assert source.columns == ("id", "price", "note")
        assert source.columns_typed

    def test_numbers_rows_by_the_line_on_which_they_start(self, tmp_path: Path) -> None:
        content = 'id,text\r\n1,"two\r\nlines"\r\n\r\n2,"a ""quoted"" word"\r\n'
        found = values(open_source(written(tmp_path, "a.csv", content)))
        assert found == [(2, {"id": "1", "text": "two\r\nlines"}), (5, {"id": "2", "text": 'a "quoted" word'})]

    def test_takes_a_bom_from_the_header(self, tmp_path: Path) -> None:
        assert open_source(written(tmp_path, "a.csv", b"\xef\xbb\xbfid\n1\n")).columns == ("id",)

    def test_reads_tabs(self, tmp_path: Path) -> None:
        assert values(open_source(written(tmp_path, "a.tsv", "a\tb\n1,5\t2\n"))) == [(2, {"a": "1,5", "b": "2"})]

    def test_reads_fields_longer_than_the_standard_library_allows(self, tmp_path: Path) -> None:
        ((_, row),) = values(open_source(written(tmp_path, "a.csv", f"prompt\n{'x' * 200_000}\n")))
        assert row == {"prompt": "x" * 200_000}

    @pytest.mark.parametrize(
        ("content", "line", "reason"),
        [
            (b"id,text\n1,a,b\n", 2, "has 3 fields where the header has 2"),
            (b"id,text\n1\n", 2, "has 1 field where the header has 2"),
            (b'id,text\n1,"a"b\n', 2, "malformed row"),
            (b'id,text\n1,a\n2,"never\nclosed\n', 3, "never closed"),
            (b"id,text\n1,caf\xe9\n", 2, "byte 0xE9 at position 6 is not UTF-8"),
            (b"id,text\n1,a\0\n", 2, "NUL byte"),
            (b"id,text\n1,a\rb\n", 2, "carriage return"),
            (b"id,id\n1,2\n", 1, "the column 'id' twice"),
            (b",text\n1,2\n", 1, "column 1 of the header has no name"),
            (b"id,t\xe9xt\n1,2\n", 1, "is not UTF-8"),
            (b"id,text\n", None, "has no rows"),
        ],
    )
    def test_refuses_a_bad_row_by_its_line(self, tmp_path: Path, content: bytes, line: int | None, reason: str) -> None:
        problem = only_problem(tmp_path, "a.csv", content)
        assert problem.line == line
        assert reason in problem.reason

    def test_goes_on_after_a_bad_row(self, tmp_path: Path) -> None:
        items = list(open_source(written(tmp_path, "a.csv", 'id,p\n1,"a"b\n2,x,y\n3,ok\n')))
        assert [item.line for item in items] == [2, 3, 4]
        assert isinstance(items[2], SourceRow)

    def test_gives_up_on_a_quote_that_swallows_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(delimited, "MAX_LINE", 1000)
        problem = only_problem(tmp_path, "a.csv", 'id,p\n1,a\n2,"' + "row\n" * 1000)
        assert problem.line == 3
        assert "never closed" in problem.reason


class TestText:
    def test_takes_each_line_as_a_prompt(self, tmp_path: Path) -> None:
        source = open_source(written(tmp_path, "a.txt", 'one\r\n\n  two, "2" \nthree'))
        assert values(source) == [(1, {"prompt": "one"}), (3, {"prompt": '  two, "2" '}), (4, {"prompt": "three"})]

    def test_refuses_what_is_not_utf8(self, tmp_path: Path) -> None:
        assert "iconv" in only_problem(tmp_path, "a.txt", b"one\ncaf\xe9\n").reason


class TestFiles:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
    def test_refuses_utf16_with_a_way_out(self, tmp_path: Path, name: str) -> None:
        for encoding in ("utf-16", "utf-16-be", "utf-16-le"):
            problem = only_problem(tmp_path, name, '{"prompt": "x"}\n'.encode(encoding))
            assert "iconv" in problem.reason

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.jsonl.gz"])
    @pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\r\n  \n"])
    def test_refuses_a_file_without_rows(self, tmp_path: Path, name: str, content: bytes) -> None:
        content = gzip.compress(content, mtime=0) if name.endswith("gz") else content
        if name.endswith((".csv", ".tsv")) and b" " in content:
            content = content.replace(b" ", b"")
        assert "has no rows" in only_problem(tmp_path, name, content).reason

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (gzip.compress(b"x", mtime=0), "gzip"),
            (b"PAR1\0\0", "Parquet"),
            (b"PK\x03\x04", "Excel"),
            (b"\x28\xb5\x2f\xfd", "zstd"),
        ],
    )
    def test_says_what_a_file_of_another_format_is(self, tmp_path: Path, content: bytes, reason: str) -> None:
        assert reason in only_problem(tmp_path, "a.jsonl", content).reason

    def test_reads_gzip(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.csv.gz", gzip.compress(b"a\n1\n", mtime=0))
        assert values(open_source(path)) == [(2, {"a": "1"})]

    def test_says_that_a_compressed_file_is_cut(self, tmp_path: Path) -> None:
        whole = gzip.compress(b"".join(b'{"a": "%s"}\n' % os.urandom(20).hex().encode() for _ in range(1000)))
        problem = only_problem(tmp_path, "a.jsonl.gz", whole[:-2000])
        assert "damaged or cut" in problem.reason

    def test_reads_the_files_of_a_glob_in_order_as_one_source(self, tmp_path: Path) -> None:
        for name in ("b", "a", "c"):
            written(tmp_path, f"{name}.csv", f"k\n{name}\n")
        rows = list(open_source(f"{tmp_path}/*.csv"))
        assert [(Path(row.file).name, row.line) for row in rows] == [("a.csv", 2), ("b.csv", 2), ("c.csv", 2)]

    def test_takes_a_file_whose_name_has_glob_marks(self, tmp_path: Path) -> None:
        assert values(open_source(written(tmp_path, "a[1].txt", "x\n"))) == [(1, {"prompt": "x"})]

    def test_refuses_files_with_different_headers(self, tmp_path: Path) -> None:
        written(tmp_path, "a.csv", "k\n1\n")
        written(tmp_path, "b.csv", "l\n1\n")
        with pytest.raises(SourceError, match=r"b\.csv:1: the header differs"):
            list(open_source(f"{tmp_path}/*.csv"))

    def test_refuses_files_of_different_formats(self, tmp_path: Path) -> None:
        written(tmp_path, "a.csv", "k\n1\n")
        written(tmp_path, "a.txt", "k\n1\n")
        with pytest.raises(InputError, match="different formats"):
            open_source(f"{tmp_path}/a.*")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("missing.jsonl", "no such file"),
            ("missing", "no such file"),
            ("", "is a directory without a file that can be read"),
            ("*.nothing", "no file matches"),
            ("a.parquet", "no such file"),
            ("a.xlsx", "no such file"),
            ("b.xlsx", ".xlsx files are not read: export it as .csv"),
            ("b.jsonl.bz2", ".bz2 files are not read: unpack it with `bunzip2`"),
            ("a.dat", "add --format"),
            ("no\0name.txt", "cannot be a path"),
            ("x" * 300 + ".txt", "cannot be read: File name too long"),
        ],
    )
    def test_refuses_what_it_cannot_open_in_one_line(self, tmp_path: Path, name: str, reason: str) -> None:
        for there in ("a.dat", "b.xlsx", "b.jsonl.bz2"):
            written(tmp_path, there, "x\n")
        with pytest.raises(InputError) as caught:
            open_source(os.path.join(tmp_path, name))
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2

    def test_refuses_an_unknown_format(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="format 'yaml' is not known"):
            open_source(written(tmp_path, "a.txt", "x"), format="yaml")

    @pytest.mark.parametrize(
        ("uri", "reason"),
        [
            ("hdfs://host/a.jsonl", "unknown scheme 'hdfs'"),
            ("s3:///a.jsonl", "names no bucket or host"),
            ("https://127.0.0.1:1/*.jsonl", "only single files are read"),
            ("https://127.0.0.1:1/folder/", "only single files are read"),
        ],
    )
    def test_refuses_a_uri_that_means_no_files(self, uri: str, reason: str) -> None:
        with pytest.raises(InputError, match=re.escape(reason)):
            open_source(uri)

    @pytest.mark.parametrize(
        "uri",
        ["https://user:secret-word@host/a.jsonl", "https://host/a.jsonl?sig=secret-word", "s3://id:secret-word@b/a"],
    )
    def test_refuses_a_uri_that_holds_a_secret_and_does_not_show_it(self, uri: str) -> None:
        with pytest.raises(InputError, match="the URI holds a password or a signature") as caught:
            open_source(uri)
        assert "secret-word" not in str(caught.value)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_refuses_an_unreadable_file(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.txt", "x")
        os.chmod(path, 0)
        with pytest.raises(InputError, match="no permission"):
            open_source(path)

    @pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that fails when it is read")
    def test_says_that_reading_fails(self) -> None:
        with pytest.raises(SourceError, match="/proc/self/mem: cannot be read: Input/output error"):
            open_source("/proc/self/mem", format="txt")

    def test_an_explicit_format_wins_over_the_extension(self, tmp_path: Path) -> None:
        path = written(tmp_path, "a.dat", '{"a": 1}')
        assert values(open_source(path, format="jsonl")) == [(1, {"a": 1})]

    def test_reads_stdin_once(self) -> None:
        source = open_source("-", stdin=io.BytesIO(b'{"a": 1}\n{"a"'))
        row, problem = source
        assert isinstance(row, SourceRow)
        assert str(problem).startswith("stdin:2: ")
        with pytest.raises(InputError, match="only once"):
            iter(source)

    def test_reads_stdin_in_the_format_given(self) -> None:
        assert values(open_source("-", format="txt", stdin=io.BytesIO(b"x"))) == [(1, {"prompt": "x"})]

    def test_a_file_can_be_read_again(self, tmp_path: Path) -> None:
        source = open_source(written(tmp_path, "a.jsonl", '{"a": 1}\n' * 100))
        assert values(source) == values(source)

    def test_knows_columns_before_the_first_row_is_taken(self, tmp_path: Path) -> None:
        source = open_source(written(tmp_path, "a.jsonl", '{"a": 1}\n{"b": 1}\n'))
        assert source.columns == ("a", "b")
        assert not source.columns_typed

    def test_knows_the_same_columns_wherever_a_pipe_was_cut(self) -> None:
        rows = [b'{"a": 1}\n', *(b'{"b": 1}\n' for _ in range(63)), b'{"late": 1}\n']
        for blocks in (rows, [b"".join(rows)]):
            source = open_source("-", stdin=Pipe(blocks))
            assert source.columns == ("a", "b")
            assert len(values(source)) == 65

    def test_an_error_after_the_first_rows_comes_after_them(self) -> None:
        source = open_source("-", format="json", stdin=io.BytesIO(b'[{"a": 1}, {"a": 2}, '))
        items = iter(source)
        assert [next(items), next(items)] == [SourceRow("stdin", 1, {"a": 1}), SourceRow("stdin", 1, {"a": 2})]
        with pytest.raises(SourceError, match="the file seems cut"):
            next(items)
