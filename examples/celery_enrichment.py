"""Jobs that run in Celery and are followed with Towline: hubs queue the jobs, and workers report their progress.

    TOWLINE_REDIS=redis://127.0.0.1 CATALOGUE=towline/cli/books.csv
    celery --app examples.celery_enrichment.app worker        # start as many as the work needs
    python -m examples.celery_enrichment                      # start as many as the followers need

If a worker dies, nothing is lost: Celery gives the task to another worker, which continues the job in the same epoch.
A canceled job stops at its next report. A job fails only after Celery's last try.
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
    # Acknowledge a task after its work is done instead of when it is fetched.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 3600},
    broker_connection_retry_on_startup=True,
)


class JobTask(Task):
    """A task that fails its job after the last try."""

    def on_failure(self, exc: Exception, task_id: str, args: list[str], kwargs: dict[str, str], einfo: object) -> None:
        give_up(args[0])


@app.task(bind=True, base=JobTask, name="books.enrich", max_retries=TRIES - 1)
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
