"""The `csv_import` pipeline: a list of books in a CSV file, read and checked row by row.

A bad row is an entry among the errors, never the end of the job. Accepted and rejected rows go to two files in the
job's folder as they are found; a checkpoint says how long both were, so a run after a restart cuts them there and goes
on with the next row. Memory does not grow with the file.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
from msgspec import Struct
from stdnum import exceptions as stdnum_errors
from stdnum import isbn

from ..._exceptions import InvalidArgument, JobFailure
from ...protocols.wire.messages import encode
from .._jobs import JobContext, JobFunction, Upload
from ._csv_rows import NotText, Row, RowReader, WrongEncoding, text_start
from ._results import ImportedBook, RejectedRow

MEDIA_TYPES: Final = (
    "text/csv",
    "application/csv",
    "application/vnd.ms-excel",
    "application/octet-stream",
    "text/plain",
)

_DELIMITERS: Final = ",;\t|"
_MOST_EVENTS: Final = 500  # a larger file reports its progress in larger steps
_MOST_ROWS: Final = 5000  # rows read in one go, so that a cancel is felt soon

# What exports of libraries and shops call their columns; compared in lower case, letters and digits only.
_COLUMNS: Final[Mapping[str, str]] = {
    alias: field
    for field, aliases in {
        "title": ("title", "booktitle", "name", "bookname"),
        "author": ("author", "authors", "authorname", "primaryauthor", "writer", "creator", "by"),
        "isbn": ("isbn", "isbn13", "isbn10", "isbns", "isbnuid", "ean", "ean13"),
        "publisher": ("publisher", "publishers", "publishinghouse", "imprint"),
        "year": (
            "year",
            "publicationyear",
            "yearpublished",
            "yearofpublication",
            "originalpublicationyear",
            "pubyear",
            "published",
            "publicationdate",
            "datepublished",
        ),
        "cover": ("coverurl", "cover", "image", "imageurl", "thumbnail"),
    }.items()
    for alias in aliases
}
_ISBN_PROBLEMS: Final[Mapping[type[Exception], str]] = {
    stdnum_errors.InvalidChecksum: "the check digit is wrong",
    stdnum_errors.InvalidLength: "it has neither 10 nor 13 digits",
    stdnum_errors.InvalidFormat: "it has signs that no ISBN has",
    stdnum_errors.InvalidComponent: "it does not begin with 978 or 979",
}


class _Layout(Struct, frozen=True):
    """What the header says: the delimiter, how many columns, and which of them hold what."""

    delimiter: str
    columns: int
    fields: dict[str, list[int]]


class _Checkpoint(Struct):
    """Where an import stands: rows done, the next row's place, and the two files' entries and bytes."""

    layout: _Layout
    total: int
    offset: int
    line: int
    rows: int = 0
    books: int = 0
    books_size: int = 0
    errors: int = 0
    errors_size: int = 0


def csv_import(*, row_delay: float = 0) -> JobFunction:
    """Make the pipeline's function. `row_delay` is a pause after each row, in seconds, to see it work.

    It ends a job as failed with `CSV_EMPTY`, `CSV_BINARY`, `CSV_ENCODING` or `CSV_HEADER` where the file as a whole
    cannot be read. Raises `InvalidArgument` for a delay below zero.
    """
    if row_delay < 0:
        raise InvalidArgument("row_delay", "must not be below zero")

    async def run(context: JobContext, upload: Upload) -> Path:
        with ExitStack() as files:
            work = await anyio.to_thread.run_sync(_Import, files, context, upload.path)
            total = work.at.total
            await context.start(total)
            step = 1 if row_delay else min(_MOST_ROWS, max(1, total // _MOST_EVENTS))
            while (item := await anyio.to_thread.run_sync(work.read_rows, step)) is not None:
                checkpoint = msgspec.to_builtins(work.at)
                await context.progress(work.at.rows, total, item, status="importing", checkpoint=checkpoint)
                if row_delay:
                    await anyio.sleep(row_delay)
            return await anyio.to_thread.run_sync(work.write_result)

    return run


def read_books(path: Path) -> Iterator[ImportedBook | RejectedRow]:
    """Read a CSV file by the pipeline's rules, row by row. Raises `JobFailure` as the pipeline does, and `OSError`."""
    with path.open("rb") as file, _failing_clearly():
        layout, reader = _read_header(file, text_start(file))
        for row in reader:
            yield _check(row, layout)


class _Import:
    """One import's files and place. All of it blocks: it is called in worker threads, one call at a time."""

    def __init__(self, files: ExitStack, context: JobContext, source: Path) -> None:
        self._folder = context.directory
        with _failing_clearly():
            file = files.enter_context(source.open("rb"))
            self.at = _survey(file) if context.checkpoint is None else msgspec.convert(context.checkpoint, _Checkpoint)
        self._reader = RowReader(file, delimiter=self.at.layout.delimiter, offset=self.at.offset, line=self.at.line)
        self._books = _open_at(files, self._folder / "books", self.at.books_size)
        self._errors = _open_at(files, self._folder / "errors", self.at.errors_size)

    def read_rows(self, count: int) -> str | None:
        """Read and check up to `count` rows, keep them on disk, and name the last one; None at the end."""
        item = None
        with _failing_clearly():
            for _ in range(count):
                row = next(self._reader, None)
                if row is None:
                    break
                item = self._take(row)
        if item is not None:
            for file in (self._books, self._errors):
                file.flush()
                os.fsync(file.fileno())
            self.at.offset, self.at.line = self._reader.offset, self._reader.line
        return item

    def _take(self, row: Row) -> str:
        self.at.rows += 1
        checked = _check(row, self.at.layout)
        if isinstance(checked, ImportedBook):
            self.at.books_size += self._books.write((b",\n" if self.at.books else b"") + encode(checked))
            self.at.books += 1
        else:
            self.at.errors_size += self._errors.write((b",\n" if self.at.errors else b"") + encode(checked))
            self.at.errors += 1
        return checked.title

    def write_result(self) -> Path:
        """Put both files together as the job's result."""
        path = self._folder / "result.part"
        with path.open("wb") as out:
            out.write(b'{"pipeline":"csv_import","books":[')
            self._books.seek(0)
            shutil.copyfileobj(self._books, out)
            out.write(b'],"errors":[')
            self._errors.seek(0)
            shutil.copyfileobj(self._errors, out)
            out.write(f'],"successRate":"{self.at.books}/{self.at.rows}"}}'.encode())
        return path


@contextmanager
def _failing_clearly() -> Iterator[None]:
    try:
        yield
    except NotText as error:
        raise JobFailure("CSV_BINARY", "the file is not text, so it is no CSV file") from error
    except WrongEncoding as error:
        raise JobFailure("CSV_ENCODING", str(error)) from error


def _open_at(files: ExitStack, path: Path, size: int) -> BinaryIO:
    # What was written after the checkpoint is written again.
    path.touch()
    file = files.enter_context(path.open("rb+"))
    file.truncate(size)
    file.seek(size)
    return file


# --- the file as a whole ---------------------------------------------------------------------------------------


def _survey(file: BinaryIO) -> _Checkpoint:
    """Read the header, and the whole file once: it is then known to be text, and how many rows it has."""
    start = text_start(file)
    layout, reader = _read_header(file, start)
    place = _Checkpoint(layout=layout, total=0, offset=reader.offset, line=reader.line)
    for place.total, _ in enumerate(reader, start=1):
        if place.total % _MOST_ROWS == 0:
            anyio.from_thread.check_cancelled()
    return place


def _read_header(file: BinaryIO, start: int) -> tuple[_Layout, RowReader]:
    """Find the delimiter under which most columns of the first row are known, and the reader behind that row."""
    guesses: list[tuple[_Layout, Row, RowReader]] = []
    for delimiter in _DELIMITERS:
        reader = RowReader(file, delimiter=delimiter, offset=start)
        row = next(reader, None)
        if row is None:
            raise JobFailure("CSV_EMPTY", "the file is empty")
        guesses.append((_layout(row, delimiter), row, reader))
    layout, row, reader = max(guesses, key=lambda guess: len(guess[0].fields))
    for field in ("title", "author"):
        if field not in layout.fields:
            seen = ", ".join(name.strip()[:40] for name in row.fields[:10]) or row.problem
            raise JobFailure("CSV_HEADER", f"the first row names no column {field!r}; it says: {seen}")
    return layout, RowReader(file, delimiter=layout.delimiter, offset=reader.offset, line=reader.line)


def _layout(row: Row, delimiter: str) -> _Layout:
    fields: dict[str, list[int]] = {}
    for index, name in enumerate(row.fields):
        field = _COLUMNS.get(re.sub(r"[\W_]", "", name.lower()))
        if field is not None:
            fields.setdefault(field, []).append(index)
    return _Layout(delimiter=delimiter, columns=len(row.fields), fields=fields)


# --- one row ---------------------------------------------------------------------------------------------------


def _check(row: Row, layout: _Layout) -> ImportedBook | RejectedRow:
    """Make a book of a row, or say why it is none."""

    def value(field: str) -> str | None:
        """The first of the field's columns that is not empty."""
        for index in layout.fields.get(field, ()):
            if index < len(row.fields) and (text := row.fields[index].strip()):
                return text
        return None

    title = value("title")
    problem: str | None = None
    number: str | None = None
    author = value("author")
    extra = any(field.strip() for field in row.fields[layout.columns :])
    if row.problem is not None:
        problem = row.problem
    elif len(row.fields) < layout.columns or extra:
        problem = f"{len(row.fields)} columns where the header has {layout.columns}"
    elif title is None:
        problem = "the title is missing"
    elif author is None:
        problem = "the author is missing"
    elif (written := value("isbn")) is not None:
        try:
            # Some exports write ="978…" so that a spreadsheet takes it for text.
            number = isbn.validate(written.removeprefix("=").strip('"'), convert=True)
        except stdnum_errors.ValidationError as error:
            problem = f"ISBN {written[:40]!r}: {_ISBN_PROBLEMS.get(type(error), 'it is not valid')}"
    if problem is not None or title is None or author is None:
        return RejectedRow(title=title or f"(line {row.line})", error=f"line {row.line}: {problem}")
    year = value("year")
    return ImportedBook(
        title=title,
        author=author,
        isbn=number,
        publisher=value("publisher"),
        publication_year=int(year) if year is not None and re.fullmatch(r"[0-9]{1,4}", year) else year,
        cover_url=value("cover"),
    )
