"""Runs Towline's WebSocket through every case of Autobahn's fuzzing server; see README.md beside it.

    python tests/conformance/autobahn_client.py ws://127.0.0.1:9001 [--deflate takeover] [--backend trio]

Prints how many cases and closes were judged how. Exits with 1 if a case failed, was non-strict or not judged at all,
if its close was wrong or unclean, if it hung, or if it ended in an untyped error.
"""

# ruff: noqa: T201 - a script: printing is what it does

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
from anyio.abc import ByteStream

from towline import TowlineError
from towline.transport import Deflate, Endpoint, Limits, Network, WebSocket, connect_websocket

# Cases 9.* send up to 16 MiB, in frames of 64 bytes some of them.
LIMITS = Limits(max_message=32 << 20, max_fragments=1 << 20)
GOOD = {"OK", "INFORMATIONAL"}
SECONDS_A_CASE = 300


class OtherPort(Network):
    """Connects to another port than the URL's, which the server checks, if `tls_front.py` listens there."""

    def __init__(self, port: int | None) -> None:
        super().__init__()
        self.port = port

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        return await super().connect(endpoint if self.port is None else replace(endpoint, port=self.port))


NETWORK = OtherPort(None)


async def ask(base: str, path: str) -> object:
    """What the server says on a connection of its own."""
    socket = await connect_websocket(f"{base}/{path}", limits=LIMITS, network=NETWORK)
    try:
        message = (await socket.receive_batch())[0]
    finally:
        await socket.aclose()
    return json.loads(message)


async def echo(socket: WebSocket) -> None:
    while True:
        for message in await socket.receive_batch():
            await socket.send(message)


async def run_case(base: str, number: int, agent: str, deflate: Deflate | None) -> str | None:
    """One case: echo to the end. Gives the trouble, if it was not of a typed kind."""
    path = f"runCase?case={number}&agent={agent}"
    try:
        with anyio.fail_after(SECONDS_A_CASE):
            socket = await connect_websocket(f"{base}/{path}", limits=LIMITS, deflate=deflate, network=NETWORK)
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


async def run(base: str, agent: str, deflate: Deflate | None, reports: Path) -> bool:
    count = await ask(base, "getCaseCount")
    assert isinstance(count, int)
    troubles: dict[str, str] = {}
    for number in range(1, count + 1):
        trouble = await run_case(base, number, agent, deflate)
        info = await ask(base, f"getCaseInfo?case={number}")
        assert isinstance(info, dict)
        if trouble is not None:
            troubles[info["id"]] = trouble
        if sys.stderr.isatty():
            print(f"\r{info['id']} ({number} of {count})\x1b[K", end="", file=sys.stderr)
    with suppress(TowlineError):  # this one closes without an answer
        await ask(base, f"updateReports?agent={agent}")
    return judge(json.loads((reports / "index.json").read_text()).get(agent, {}), count, troubles, deflate is not None)


def judge(verdicts: dict[str, dict[str, object]], count: int, troubles: dict[str, str], deflate: bool) -> bool:
    """Print what the server's index says of each case, and beside it what happened here."""
    good = GOOD if deflate else GOOD | {"UNIMPLEMENTED"}
    cases = Counter(str(verdict["behavior"]) for verdict in verdicts.values())
    closes = Counter(str(verdict["behaviorClose"]) for verdict in verdicts.values())
    print(f"{'':20} {'cases':>6} {'closes':>6}")
    for name in sorted(cases | closes):
        print(f"{name:20} {cases[name]:6} {closes[name]:6}")
    print(f"{'all':20} {cases.total():6} {closes.total():6}   of {count}")
    bad = {
        case: f"{verdict['behavior']}, close {verdict['behaviorClose']}"
        for case, verdict in verdicts.items()
        if verdict["behavior"] not in good or verdict["behaviorClose"] not in good
    }
    for case, trouble in troubles.items():
        bad[case] = f"{bad.get(case, '')} {trouble}".strip()
    for case, problem in bad.items():
        print(f"{case}: {problem}")
    return not bad and len(verdicts) == count


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--deflate", choices=["off", "per-message", "takeover"], default="off")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--reports", type=Path, default=Path("build/autobahn"), help="the server's outdir")
    parser.add_argument("--port", type=int, help="connect here instead of the URL's port")
    options = parser.parse_args()
    NETWORK.port = options.port
    scheme = options.base.partition(":")[0]
    agent = f"towline-{scheme}-{options.backend}-deflate-{options.deflate}"
    offer = None if options.deflate == "off" else Deflate(context_takeover=options.deflate == "takeover")
    fine = anyio.run(run, options.base, agent, offer, options.reports, backend=options.backend)
    sys.exit(0 if fine else 1)
