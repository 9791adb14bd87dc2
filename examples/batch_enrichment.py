"""A hub whose jobs look up lists of books in a local catalogue.

    python examples/batch_enrichment.py towline/cli/books.csv
    curl -H 'content-type: application/json' -d '{"books": [{"title": "Emma"}]}' http://127.0.0.1:8470/api/enrich

A book that is not found or not valid becomes a result; it does not fail the job. The catalogue is built from a CSV file
by the same rules that `csv_import` uses.
"""

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from stdnum import isbn

from towline.server import (
    BatchEnrichmentResult,
    EnrichedBook,
    Hub,
    ImportedBook,
    JobContext,
    JobFailure,
    JobFunction,
    Upload,
    read_books,
    serve,
)

MOST_BOOKS = 10_000


class Wanted(msgspec.Struct):
    """The known data of a book to look up."""

    title: str = ""
    author: str | None = None
    isbn: str | None = None


class Batch(msgspec.Struct):
    books: list[Wanted]


@dataclass
class Catalogue:
    """Books by ISBN, and by title and author in any spelling of case and punctuation."""

    by_isbn: dict[str, ImportedBook] = field(default_factory=dict)
    by_title: dict[str, list[ImportedBook]] = field(default_factory=dict)

    def add(self, book: ImportedBook) -> None:
        if book.isbn is not None:
            self.by_isbn[book.isbn] = book
        self.by_title.setdefault(plain(book.title), []).append(book)

    def look_up(self, wanted: Wanted) -> EnrichedBook:
        """Find the book by its ISBN or, without one, by title and author."""
        found: ImportedBook | None
        if wanted.isbn is not None:
            if not isbn.is_valid(wanted.isbn):
                return failure(wanted, "not a valid ISBN")
            found = self.by_isbn.get(isbn.validate(wanted.isbn, convert=True))
        elif not plain(wanted.title):
            return failure(wanted, "the book has no title and no ISBN")
        else:
            author = plain(wanted.author or "")
            candidates = self.by_title.get(plain(wanted.title), [])
            found = next((book for book in candidates if author in plain(book.author)), None)
        if found is None:
            return failure(wanted, "not in the catalogue")
        return EnrichedBook(title=found.title, author=found.author, isbn=found.isbn, success=True, enriched=found)


def failure(wanted: Wanted, problem: str) -> EnrichedBook:
    return EnrichedBook(title=wanted.title, author=wanted.author, isbn=wanted.isbn, success=False, error=problem)


def plain(text: str) -> str:
    """The text in lower case with letters and digits only, so that `L'Éducation` equals `l’éducation`."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def batch_enrichment(catalogue: Catalogue) -> JobFunction:
    """Make the pipeline's function.

    A look-up is quick and always gives the same result, so a run after a restart starts from the first book. The hub
    sends no event twice.
    """

    async def run(context: JobContext, upload: Upload) -> BatchEnrichmentResult:
        start = time.monotonic()
        try:
            batch = msgspec.json.decode(await anyio.Path(upload.path).read_bytes(), type=Batch)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise JobFailure("BAD_BATCH", f"the list of books cannot be read: {error}") from error
        if len(batch.books) > MOST_BOOKS:
            raise JobFailure("BAD_BATCH", f"the batch is too large: send at most {MOST_BOOKS} books")
        await context.start(len(batch.books))
        books: list[EnrichedBook] = []
        for wanted in batch.books:
            books.append(catalogue.look_up(wanted))
            await context.progress(len(books), item=wanted.title or wanted.isbn, status="looking up")
        hits = sum(book.success for book in books)
        return BatchEnrichmentResult(
            total_processed=len(books),
            success_count=hits,
            failure_count=len(books) - hits,
            duration=round((time.monotonic() - start) * 1000),
            enriched_books=books,
        )

    return run


def load_catalogue(path: Path) -> Catalogue:
    """Read a catalogue from a CSV file; bad rows are skipped."""
    catalogue = Catalogue()
    for book in read_books(path):
        if isinstance(book, ImportedBook):
            catalogue.add(book)
    return catalogue


def main() -> None:
    hub = Hub("towline-hub.db")
    function = batch_enrichment(load_catalogue(Path(sys.argv[1])))
    hub.job("batch_enrichment", path="/api/enrich", media_types=("application/json",))(function)
    serve(hub=hub)


if __name__ == "__main__":
    main()
