"""Look up a list of books in a separate worker and report with a `Reporter`: shared by the work queue examples."""

import contextlib
import os
import time
from functools import cache
from pathlib import Path

import msgspec

from towline import InvalidArgument, JobEnded
from towline.server import BatchEnrichmentResult
from towline.server.reporter import Reporter

from .batch_enrichment import Batch, Catalogue, load_catalogue

REDIS = os.environ.get("TOWLINE_REDIS", "redis://127.0.0.1")
FILES = Path(os.environ.get("TOWLINE_FILES", "towline-files"))
CATALOGUE = Path(os.environ.get("CATALOGUE", "towline/cli/books.csv"))
DELAY = float(os.environ.get("DELAY", "0"))  # seconds for each book, to make the progress visible


@cache
def catalogue() -> Catalogue:
    """The catalogue, which each worker process reads once."""
    return load_catalogue(CATALOGUE)


def run(job_id: str, path: Path) -> None:
    """Run the job, starting where an earlier run stopped. If it raises, the queue may retry."""
    # JobEnded: the job was canceled, so nothing is left to do.
    with contextlib.suppress(JobEnded), Reporter.from_url(REDIS, job_id) as report:
        look_up(report, path)


def look_up(report: Reporter, path: Path) -> None:
    start = time.monotonic()
    try:
        wanted = msgspec.json.decode(path.read_bytes(), type=Batch).books
    except msgspec.DecodeError as error:
        report.fail("BAD_BATCH", f"the list of books cannot be read: {error}")
        return
    report.start(len(wanted))
    # A look-up is quick and always gives the same result: repeat those of the earlier run without reporting them.
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
            duration=round((time.monotonic() - start) * 1000),
            enriched_books=done,
        )
    )


def give_up(job_id: str) -> None:
    """End the job as failed. Call this only after the queue's last try."""
    with contextlib.suppress(JobEnded, InvalidArgument), Reporter.from_url(REDIS, job_id) as report:
        report.fail("GAVE_UP", "the books could not be looked up", retryable=True)
