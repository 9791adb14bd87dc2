"""Looking up a list of books in a worker elsewhere, told by a `Reporter`: what the examples with work queues share."""

import contextlib
import os
import time
from functools import cache
from pathlib import Path

import msgspec

from towline import InvalidArgument, JobEnded
from towline.server.reporter import Reporter
from towline.transport import BatchEnrichmentResult

from .batch_enrichment import Batch, Catalogue, load_catalogue

REDIS = os.environ.get("TOWLINE_REDIS", "redis://127.0.0.1")
FILES = Path(os.environ.get("TOWLINE_FILES", "towline-files"))
CATALOGUE = Path(os.environ.get("CATALOGUE", "examples/books.csv"))
DELAY = float(os.environ.get("DELAY", "0"))  # seconds a book, to see it work


@cache
def catalogue() -> Catalogue:
    """The catalogue, read once by each worker process."""
    return load_catalogue(CATALOGUE)


def run(job_id: str, path: Path) -> None:
    """One run of the job, from where the run before had come. What it raises, its queue may try again."""
    # Canceled: there is nothing left to do.
    with contextlib.suppress(JobEnded), Reporter.from_url(REDIS, job_id) as report:
        look_up(report, path)


def look_up(report: Reporter, path: Path) -> None:
    begun = time.monotonic()
    try:
        wanted = msgspec.json.decode(path.read_bytes(), type=Batch).books
    except msgspec.DecodeError as error:
        report.fail("BAD_BATCH", f"the list of books cannot be read: {error}")
        return
    report.start(len(wanted))
    # A look-up is quick and always the same: those of the run before are made again, and told by nobody.
    done = [catalogue().look_up(book) for book in wanted[: report.processed]]
    for book in wanted[report.processed :]:
        done.append(catalogue().look_up(book))
        time.sleep(DELAY)
        report.progress(len(done), item=book.title, status="looking up")
    hits = sum(book.success for book in done)
    report.complete(
        BatchEnrichmentResult(
            total_processed=len(done),
            success_count=hits,
            failure_count=len(done) - hits,
            duration=round((time.monotonic() - begun) * 1000),
            enriched_books=done,
        )
    )


def give_up(job_id: str) -> None:
    """End the job as failed: for after the queue's last try, not before."""
    with contextlib.suppress(JobEnded, InvalidArgument), Reporter.from_url(REDIS, job_id) as report:
        report.fail("GAVE_UP", "the books could not be looked up", retryable=True)
