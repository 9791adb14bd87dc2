"""Installs an image on a device, as `firmware.py` describes it, with 30 s of probation:

    python device.py 8070
    python install.py http://127.0.0.1:8070 image.bin 30

Each step is saved in `update.json`. Kill the program at any moment and start it again: it goes on from the last step.
"""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import anyio
import anyio.to_thread
from firmware import FIRMWARE, Do, Event, State, Update

from towline.runner import Runner
from towline.statemachine import timeline


async def ask(update: Update, method: str, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(update.device + path, data=body, method=method)

    def send() -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                content: bytes = answer.read()
                return content
        except HTTPError as error:
            error.close()
            raise

    return await anyio.to_thread.run_sync(send, abandon_on_cancel=True)


async def upload(update: Update) -> Event:
    await ask(update, "PUT", "/image", await anyio.Path(update.image).read_bytes())
    return Event.DONE


async def verify(update: Update) -> Event:
    digest = hashlib.sha256(await anyio.Path(update.image).read_bytes()).hexdigest()
    if (await ask(update, "GET", "/digest")).decode() != digest:
        raise ValueError("the device has another image")
    return Event.DONE


async def activate(update: Update) -> Event:
    await ask(update, "POST", "/activate")
    return Event.DONE


async def watch(update: Update) -> tuple[Event, str]:
    while True:
        if await ask(update, "GET", "/health") != b"ok":
            return Event.UNHEALTHY, "the new version reports a fault"
        await anyio.sleep(update.probation / 10)


async def roll_back(update: Update) -> Event:
    await ask(update, "POST", "/rollback")
    return Event.DONE


EFFECTS = {Do.UPLOAD: upload, Do.VERIFY: verify, Do.ACTIVATE: activate, Do.WATCH: watch, Do.ROLL_BACK: roll_back}


async def install(update: Update, file: Path) -> str:
    """Install, and return the recorded run as text; it ends in `installed` or `kept`."""
    async with Runner(FIRMWARE, EFFECTS, data=update, failed=Event.FAILED, file=file) as run:
        if run.snapshot.state is State.IDLE:
            run.request(Event.INSTALL)
        await run.wait_for(*FIRMWARE.final)
    return timeline(run.journey())


if __name__ == "__main__":
    device, image, probation = sys.argv[1:]
    print(anyio.run(install, Update(device, image, probation=float(probation)), Path("update.json")))
