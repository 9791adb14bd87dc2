"""The work in Celery, the watching in Towline: one hub (or many) hands jobs to workers that tell how they get on.

    TOWLINE_REDIS=redis://127.0.0.1 CATALOGUE=examples/books.csv
    celery --app examples.celery_enrichment.app worker        # as many as there is work for
    python -m examples.celery_enrichment                      # as many as there are watchers

A worker that dies takes nothing with it: Celery gives the task to another one, which goes on where the job stood, in
the same epoch. A job that is canceled stops at its next report. A job has failed only after Celery's last try.
"""

import os
import time
from functools import cache
from pathlib import Path

import anyio.to_thread
import msgspec
from celery import Celery, Task

from towline import JobEnded
from towline.server import Hub, HubStorageError, Upload, serve
from towline.server.reporter import Reporter
from towline.transport import BatchEnrichmentResult

from .batch_enrichment import Batch, Catalogue, load_catalogue

REDIS = os.environ.get("TOWLINE_REDIS", "redis://127.0.0.1")
FILES = Path(os.environ.get("TOWLINE_FILES", "towline-files"))
CATALOGUE = Path(os.environ.get("CATALOGUE", "examples/books.csv"))
DELAY = float(os.environ.get("DELAY", "0"))  # seconds a book, to see it work
TRIES = 5

app = Celery("books", broker=REDIS)
app.conf.update(
    # A task is done when its work is done, not when it was fetched.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 3600},
    broker_connection_retry_on_startup=True,
)


@cache
def catalogue() -> Catalogue:
    """The catalogue, read once by each worker process."""
    return load_catalogue(CATALOGUE)


@app.task(bind=True, name="books.enrich", max_retries=TRIES)
def enrich(self: Task, job_id: str, path: str) -> None:
    try:
        with Reporter.from_url(REDIS, job_id) as report:
            work(report, Path(path))
    except JobEnded:
        return  # canceled: there is nothing left to do
    except (HubStorageError, OSError) as error:
        raise self.retry(exc=error, countdown=1) from error


def work(report: Reporter, path: Path) -> None:
    """Look every book up, from where the run before had come."""
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


def make_hub() -> Hub:
    hub = Hub(REDIS, files=FILES)

    @hub.dispatch("batch_enrichment", path="/api/enrich", media_types=("application/json",))
    async def hand_out(job_id: str, upload: Upload) -> None:
        await anyio.to_thread.run_sync(lambda: enrich.delay(job_id, str(upload.path.resolve())))

    return hub


if __name__ == "__main__":
    serve(port=int(os.environ.get("PORT", "8470")), hub=make_hub())
