"""A job to try a hub with: `towline serve --sample` starts one, under an id that people can type."""

from __future__ import annotations

from itertools import count
from typing import Final

import anyio
import anyio.to_thread

from ._files import UPLOAD_FILE, remove_job_folder
from ._hub import StartedJob
from .log._base import Job, Missing
from .web._access import LOCAL_OWNER
from .web._application import Hub

SAMPLE_JOB: Final = "towline-sample"


async def start_sample(hub: Hub, table: bytes) -> tuple[StartedJob, bool]:
    """Import `table` as the job `towline-sample` of a running hub; returns it, and whether it is new.

    If that job still runs after a restart of the hub, it is not new and gets another token. If it ended, the next
    free id is used (`towline-sample-2`). The hub must be the only one on its log.
    """
    for number in count(1):
        job_id = SAMPLE_JOB if number == 1 else f"{SAMPLE_JOB}-{number}"
        known = await hub.log.job(job_id)
        if isinstance(known, Job) and known.running:
            grant = await hub.tokens.grant(job_id)
            return StartedJob(job_id=job_id, token=grant.token, expires_in=grant.expires_in), False
        if known is Missing.UNKNOWN:
            break
    incoming = await hub.make_incoming()
    await anyio.Path(incoming / UPLOAD_FILE).write_bytes(table)
    # A hub that was killed while it started this job may have left the folder without the job.
    await anyio.to_thread.run_sync(remove_job_folder, hub.directory(job_id))
    return await hub.adopt("csv_import", incoming, "books.csv", LOCAL_OWNER, None, job_id), True
