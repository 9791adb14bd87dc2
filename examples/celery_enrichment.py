"""The work in Celery, the watching in Towline: one hub (or many) hands jobs to workers that tell how they get on.

    TOWLINE_REDIS=redis://127.0.0.1 CATALOGUE=examples/books.csv
    celery --app examples.celery_enrichment.app worker        # as many as there is work for
    python -m examples.celery_enrichment                      # as many as there are watchers

A worker that dies takes nothing with it: Celery gives the task to another one, which goes on where the job stood, in
the same epoch. A job that is canceled stops at its next report. A job has failed only after Celery's last try.
"""

import os
from pathlib import Path

import anyio.to_thread
from celery import Celery, Task

from towline.server import Hub, HubStorageError, Upload, serve

from .reported_enrichment import FILES, REDIS, give_up, run

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


class ToldTask(Task):
    """A task whose failure, after the last try, is the job's."""

    def on_failure(self, exc: Exception, task_id: str, args: list[str], kwargs: dict[str, str], einfo: object) -> None:
        give_up(args[0])


@app.task(bind=True, base=ToldTask, name="books.enrich", max_retries=TRIES - 1)
def enrich(self: Task, job_id: str, path: str) -> None:
    try:
        run(job_id, Path(path))
    except (HubStorageError, OSError) as error:
        raise self.retry(exc=error, countdown=1) from error


def make_hub() -> Hub:
    hub = Hub(REDIS, files=FILES)

    @hub.dispatch("batch_enrichment", path="/api/enrich", media_types=("application/json",))
    async def hand_out(job_id: str, upload: Upload) -> None:
        await anyio.to_thread.run_sync(lambda: enrich.delay(job_id, str(upload.path.resolve())))

    return hub


if __name__ == "__main__":
    serve(port=int(os.environ.get("PORT", "8470")), hub=make_hub())
