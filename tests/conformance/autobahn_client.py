"""Runs Towline's WebSocket through every case of Autobahn's fuzzing server; see README.md beside it.

    python tests/conformance/autobahn_client.py ws://127.0.0.1:9001 [--deflate] [--backend trio]

Exits with 1 if a case failed, was non-strict, hung or ended in an untyped error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import suppress

import anyio

from towline import TowlineError
from towline.transport import Deflate, Limits, WebSocket, connect_websocket

AGENT = "towline"
# Cases 9.* send up to 16 MiB; 12.* and 13.* up to 1,000 messages of 128 KiB.
LIMITS = Limits(max_message=32 << 20, max_fragments=1 << 20)
GOOD = {"OK", "INFORMATIONAL"}


async def ask(base: str, path: str) -> str:
    """What the server says on a connection of its own."""
    socket = await connect_websocket(f"{base}/{path}", limits=LIMITS)
    try:
        message = (await socket.receive_batch())[0]
    finally:
        await socket.aclose()
    return message if isinstance(message, str) else message.decode()


async def echo(socket: WebSocket) -> None:
    while True:
        for message in await socket.receive_batch():
            await socket.send(message)


async def run_case(base: str, number: int, deflate: Deflate | None) -> str | None:
    """One case: echo to the end. Gives the trouble, if it was not of a typed kind."""
    path = f"runCase?case={number}&agent={AGENT}"
    try:
        with anyio.fail_after(120):
            socket = await connect_websocket(f"{base}/{path}", limits=LIMITS, deflate=deflate)
            try:
                await echo(socket)
            finally:
                await socket.aclose()
    except TowlineError:
        return None  # how each case ends is the server's to judge
    except TimeoutError:
        return "hung"
    except Exception as error:
        return f"untyped: {error!r}"
    return "came to no end"


async def main(base: str, deflate: Deflate | None) -> bool:
    count = int(await ask(base, "getCaseCount"))
    verdicts: Counter[str] = Counter()
    bad: list[str] = []
    for number in range(1, count + 1):
        trouble = await run_case(base, number, deflate)
        status = json.loads(await ask(base, f"getCaseStatus?case={number}&agent={AGENT}"))["behavior"]
        verdicts[status] += 1
        if trouble is not None or (status not in GOOD and not (status == "UNIMPLEMENTED" and deflate is None)):
            name = json.loads(await ask(base, f"getCaseInfo?case={number}"))["id"]
            bad.append(f"{name}: {status} {trouble or ''}")
    await ask_quietly(base, f"updateReports?agent={AGENT}")
    print(dict(verdicts))  # noqa: T201 - a script of its own
    for line in bad:
        print(line)  # noqa: T201
    return not bad


async def ask_quietly(base: str, path: str) -> None:
    with suppress(TowlineError):  # this one closes without an answer
        await ask(base, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--backend", default="asyncio")
    options = parser.parse_args()
    fine = anyio.run(main, options.base, Deflate() if options.deflate else None, backend=options.backend)
    sys.exit(0 if fine else 1)
