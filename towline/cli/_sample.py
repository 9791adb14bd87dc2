"""The sample: a CSV file of books that comes with the package, and a hub that imports it as a job."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from ..protocols.towline import PROGRESS_PATH
from ..protocols.wire.messages import NAME
from ..storage import RecordKey, TokenStore
from ..transport import parse_url
from .follow._follow import resume_command

if TYPE_CHECKING:
    from ..server import Hub

SAMPLE_FILE: Final = files(__package__).joinpath("books.csv")
#: Seconds between two rows. The job takes about 80 s, so that you can open another terminal and follow it.
SAMPLE_DELAY: Final = 0.25


def serve_sample(hub: Hub, host: str, port: int, store: Path | None) -> None:
    """Serve a hub on which a sample job runs, and print how to follow that job.

    The job's token goes into the user's token store, where `towline watch` and `Connection(job=…)` look for it:
    it need not be copied, and no terminal or shell history shows it.
    """
    from ..server._sample import start_sample
    from ..server._serve import announce_on_stdout, make_server

    tokens = TokenStore(store)

    async def start_job(url: str) -> None:
        job, is_new = await start_sample(hub, SAMPLE_FILE.read_bytes())
        stream = f"ws{url.removeprefix('http')}{PROGRESS_PATH}"
        key = RecordKey(NAME, parse_url(stream).address, job.job_id)
        if is_new:  # the record is about the job with this id of another folder's hub
            await tokens.delete(key)
        # Only one record may have this id, because people follow the sample by its id alone.
        for record in await tokens.find(job.job_id):
            if record.key != key:
                await tokens.delete(record.key)
        await tokens.save(key, job.token, parameters={"url": stream})
        typer.echo(
            "A sample job is running. Follow it from another terminal:\n"
            f"  {resume_command(job.job_id, store)}\n"
            f"or open {url} in a browser.\n"
            "Ctrl-C stops the hub. Start it again, and the job continues."
        )

    make_server(hub, host, port, announce_on_stdout, start_job).run()
