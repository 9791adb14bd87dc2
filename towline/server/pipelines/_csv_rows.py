"""Reading a CSV file of any size row by row, from any row on, in bounded memory.

After each row the reader stands at a byte offset at which another reader can begin: that is what makes a long import
survive a restart. The csv module parses; this file feeds it lines and knows how many bytes they were.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

_CHUNK: Final = 64 * 1024
# Past these a row is taken for one whose quote was never closed. The reader then goes on at the row's second line, so
# they also bound the work an evil file can make: each line is read at most 200 times.
_MAX_ROW_LINES: Final = 200
_MAX_ROW_BYTES: Final = 1024 * 1024
_WRONG_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotText(Exception):
    """The file is not text: it holds bytes that no text contains."""


class WrongEncoding(Exception):
    """The file is text, but not in UTF-8. The message names the line and the encoding that it seems to have."""


class _RowTooLong(Exception):
    """A row has more lines or bytes than any row of a sane file."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: where it begins (lines count from 1), and its fields, or (`problem`) why it has none."""

    line: int
    fields: list[str]
    problem: str | None = None


class RowReader:
    """Iterates over the rows of `file` from byte `offset` on, which is in line `line`; rows of blanks are left out.

    `offset` and `line` say at any time where the next row begins. Raises `NotText` and `WrongEncoding`.
    """

    def __init__(self, file: BinaryIO, *, delimiter: str, offset: int = 0, line: int = 1) -> None:
        self._file = file
        self._delimiter = delimiter
        self._begin_at(offset, line)

    def _begin_at(self, offset: int, line: int) -> None:
        self.offset = offset
        self.line = line
        self._first_line_bytes = self._row_bytes = self._row_lines = 0
        self._rows = csv.reader(self._feed(), delimiter=self._delimiter, strict=True)

    def __iter__(self) -> Iterator[Row]:
        return self

    def __next__(self) -> Row:
        while True:
            start, line = self.offset, self.line
            self._first_line_bytes = self._row_bytes = self._row_lines = 0
            try:
                fields = next(self._rows)
            except csv.Error as error:
                return self._bad_row(start, line, str(error))
            except _RowTooLong:
                return self._bad_row(start, line, "a quote is opened and not closed")
            if any(field and not field.isspace() for field in fields):
                return Row(line, fields)

    def _bad_row(self, start: int, line: int, problem: str) -> Row:
        if self._row_lines > 1:
            # Nothing is swallowed by a stray quote: the lines after the one that has it are rows of their own.
            self._begin_at(start + self._first_line_bytes, line + 1)
        return Row(line, [], problem)

    def _feed(self) -> Iterator[str]:
        self._file.seek(self.offset)
        for data in _lines(self._file):
            self._row_lines += 1
            self._row_bytes += len(data)
            if self._row_lines == 1:
                self._first_line_bytes = len(data)
            elif self._row_lines > _MAX_ROW_LINES or self._row_bytes > _MAX_ROW_BYTES:
                raise _RowTooLong
            self.offset += len(data)
            self.line += 1
            yield _decode(data, self.line - 1)


def text_start(file: BinaryIO) -> int:
    """Look at how the file begins and give the offset of its text, behind a UTF-8 mark if there is one.

    Raises `NotText` and `WrongEncoding`.
    """
    file.seek(0)
    head = file.read(_CHUNK)
    if head.startswith(_WRONG_MARKS):
        raise WrongEncoding("the file is UTF-16; save it as UTF-8")
    if b"\0" in head:
        raise NotText
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Split at LF, CR LF and CR. A line longer than a row may be comes in pieces."""
    rest = b""
    while chunk := file.read(_CHUNK):
        data = rest + chunk
        lines = data.splitlines(keepends=True)
        # The last one may go on in the next chunk, and a CR at its end may be half of a CR LF.
        rest = b"" if data.endswith(b"\n") else lines.pop()
        yield from lines
        if len(rest) > _MAX_ROW_BYTES:
            raise NotText
    yield from rest.splitlines(keepends=True)


def _decode(data: bytes, line: int) -> str:
    if b"\0" in data:
        raise NotText
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        seen = f"byte 0x{data[error.start]:02x} in line {line} is not UTF-8"
        raise WrongEncoding(f"{seen}; it may be Latin-1 or Windows-1252: save the file as UTF-8") from error
