"""The row reader: what the csv module would read, from any row on, whatever the file holds."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline.server.pipelines._csv_rows import NotText, Row, RowReader, WrongEncoding, text_start

FIELDS = st.lists(st.text('a,"\r\n é☃\u2028\x0b\x85', max_size=8), min_size=1, max_size=4)


def rows_of(data: bytes, offset: int = 0, line: int = 1) -> list[Row]:
    return list(RowReader(io.BytesIO(data), delimiter=",", offset=offset, line=line))


def written(rows: list[list[str]], terminator: str) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=terminator, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue().encode()


@given(st.lists(FIELDS, max_size=8), st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_was_written_is_read(rows: list[list[str]], terminator: str) -> None:
    expected = [row for row in rows if any(field and not field.isspace() for field in row)]
    assert [row.fields for row in rows_of(written(rows, terminator))] == expected


@given(st.one_of(st.binary(max_size=200), st.text('a,"\r\né', max_size=200).map(str.encode)))
def test_a_reader_can_begin_behind_any_row(data: bytes) -> None:
    reader = RowReader(io.BytesIO(data), delimiter=",")
    places: list[tuple[int, int]] = []
    rows: list[Row] = []
    try:
        for row in reader:
            rows.append(row)
            places.append((reader.offset, reader.line))
    except (NotText, WrongEncoding):
        return
    assert reader.offset == len(data)
    for index, (offset, line) in enumerate(places):
        assert rows_of(data, offset, line) == rows[index + 1 :]


def test_a_quote_that_is_never_closed_costs_one_row() -> None:
    data = b'a,b\n"open,b\n' + b"c,d\n" * 1000
    rows = rows_of(data)
    assert rows[1].problem == "a quote is opened and not closed"
    assert [row.fields for row in rows[2:]] == [["c", "d"]] * 1000
    assert rows[2].line == 3


def test_a_quote_open_at_the_end() -> None:
    rows = rows_of(b'"open,b\nc,d\n')
    assert [(row.line, row.fields) for row in rows] == [(1, []), (2, ["c", "d"])]


def test_an_endless_row_is_bounded() -> None:
    class Endless(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1) -> bytes:
            # Each line closes the quote that the one before it opened, and opens the next.
            chunk = b'","a\n' * 1000 if self.read_bytes else b'"a\n'
            self.read_bytes += len(chunk)
            assert self.read_bytes < 10_000_000
            return chunk

    row = next(RowReader(Endless(), delimiter=","))
    assert row.problem is not None


def test_a_line_without_an_end_is_no_text() -> None:
    with pytest.raises(NotText):
        rows_of(b"a" * 3_000_000)


@pytest.mark.parametrize("place", [0, 5, 70_000, 200_000])
def test_a_zero_byte_is_no_text(place: int) -> None:
    data = (b"a,b\n" * 60_000)[:place] + b"\0,b\n"
    with pytest.raises(NotText):
        text_start(io.BytesIO(data))
        rows_of(data)


def test_what_is_not_utf_8_says_where() -> None:
    with pytest.raises(WrongEncoding, match=r"byte 0xe9 in line 2 is not UTF-8"):
        rows_of("a,b\nzoé,b\n".encode("latin-1"))


@pytest.mark.parametrize(("mark", "start"), [(b"", 0), (b"\xef\xbb\xbf", 3)])
def test_a_utf_8_mark_is_no_text(mark: bytes, start: int) -> None:
    assert text_start(io.BytesIO(mark + b"a,b")) == start


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_unicode_is_refused(encoding: str) -> None:
    with pytest.raises((WrongEncoding, NotText)):
        text_start(io.BytesIO("title,author\n".encode(encoding)))
