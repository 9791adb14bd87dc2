"""A FastAPI application with a hub mounted at /jobs: the program of docs/hub.md."""

import csv
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI, Request

from towline.server import Hub, JobContext, JobFailure, Upload


async def who(request: Request) -> str | None:
    """The user who starts a job with this request, or None to refuse it."""
    return request.headers.get("x-user")  # your own login goes here


hub = Hub("hub.db", base_path="/jobs", authorize=who)


@hub.job("sum", path="/api/sum", media_types=("text/csv",))
async def add_up(context: JobContext, upload: Upload) -> dict[str, int]:
    text = await anyio.to_thread.run_sync(upload.path.read_text)
    rows = list(csv.reader(text.splitlines()))
    done, total = context.checkpoint or (0, 0)  # the position of the run before
    await context.start(len(rows))
    for name, amount in rows[done:]:
        if not amount.isdigit():
            raise JobFailure("NOT_A_NUMBER", f"{name} has {amount!r}")
        done, total = done + 1, total + int(amount)
        await context.progress(done, item=name, checkpoint=[done, total])
    return {"total": total}


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with hub:
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/jobs", hub)
