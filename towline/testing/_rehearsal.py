"""A rehearsal: follows a real job on a real server through a storm of faults, and reports the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream
from msgspec import Struct, field

from .._connection import Connection
from .._exceptions import Exhausted
from .._tasks import Tasks
from .._text import escape
from .._updates import AnyUpdate
from ..statemachine import Journey, Passage, State, StateChange, timeline_svg
from ..transport import Endpoint, Network, parse_url
from ._audit import audit_updates
from ._storm_script import StormScript
from .proxy._fault_proxy import FaultProxy


class RehearsalEntry(Struct, frozen=True, tag_field="kind", tag="entry"):
    """An entry of the report, `at` seconds after the start: a fault, or a change of state with its cause."""

    at: float
    what: str
    state: str | None = None


class Rehearsal(Struct, kw_only=True):
    """The result of a rehearsal; msgspec writes it as JSON.

    `findings` is empty if exactly one end was delivered, nothing after it, and no event twice or left out. `outcome` is
    the end's type, None if the engine gave up or the rehearsal was stopped early. `dials` counts the connections that
    reached the proxy, of the WebSocket and of HTTP calls.
    """

    seed: int
    steps: list[str]
    entries: list[RehearsalEntry] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    outcome: str | None = None
    updates: int = 0
    dials: int = 0
    seconds: float = 0.0

    def svg(self) -> str:
        """Draw the run as SVG: a lane for each state, and a row for each fault and each change of state."""
        passages: list[Passage] = []
        state = State.IDLE.value
        for entry in self.entries:
            if entry.state is None:
                event, _, note = entry.what.partition(" ")
                passage = Passage(at=entry.at, event=event, source=state, target=state, verdict="kept", note=note)
            else:
                before, state = state, entry.state
                passage = Passage(
                    at=entry.at, event=state, source=before, target=state, verdict="moved", note=entry.what
                )
            passages.append(passage)
        states = tuple(state.value for state in State)
        return timeline_svg(Journey(table=f"seed {self.seed}", states=states, passages=tuple(passages)))


class Detour(Network):
    """A `Network` that connects to the proxy instead of the server; names and certificates stay the server's.

    `via` is the proxy of the next connection. It may be replaced at any time.
    """

    def __init__(self, proxy: FaultProxy, *, allow_insecure: bool = False) -> None:
        super().__init__(allow_insecure=allow_insecure)
        self.via = proxy

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        """Open a stream to the proxy."""
        name = endpoint.server_name or endpoint.host
        there = replace(endpoint, host=self.via.host, port=self.via.port, zone=None, server_name=name)
        return await super().connect(there)


async def rehearse(
    url: str,
    script: StormScript,
    *,
    report: Callable[[RehearsalEntry], Any] = lambda entry: None,
    until: Callable[[], Awaitable[Any]] = anyio.sleep_forever,
    allow_insecure: bool = False,
    **options: Any,
) -> Rehearsal:
    """Follow a job at `url` through the storm of `script`. `options` are those of `Connection` (job, token, …).

    The storm ends with the job, or early when `until()` returns. `report` is called with each entry as it happens.

    Raises the errors of `Connection`, except `Exhausted`, which is a result: then `outcome` is None. Raises
    `InvalidArgument` for `message` faults on a `wss` URL. If the script names no faults, the seed leaves those out on
    such a URL.
    """
    origin = parse_url(url, allow_insecure=allow_insecure).origin
    if origin.secure:
        script = script.for_tls()
    rehearsal = Rehearsal(seed=script.seed, steps=[str(step) for step in script.all_steps()])
    started = anyio.current_time()

    def note(what: str, state: State | None = None) -> None:
        at = round(anyio.current_time() - started, 3)
        entry = RehearsalEntry(at, what, None if state is None else state.value)
        rehearsal.entries.append(entry)
        report(entry)

    def changed(change: StateChange) -> None:
        note("" if change.cause is None else escape(change.cause.text), change.state)

    updates: list[AnyUpdate] = []

    async def stop_early(line: Connection) -> None:
        await until()
        if line.cancel():
            rehearsal.findings.append("stopped before the end of the job")

    async def follow(proxy: FaultProxy, tasks: Tasks) -> None:
        detour = Detour(proxy, allow_insecure=allow_insecure)
        async with Connection(url, network=detour, on_state=changed, **options) as line:
            tasks.start_soon(stop_early, line, name="towline storm")
            try:
                async for update in line:
                    updates.append(update)  # noqa: PERF401 - what came before it raises is kept
            except Exhausted as error:
                rehearsal.findings.append(f"gave up: {escape(str(error))}")
            if line.outcome is not None:
                rehearsal.outcome = type(line.outcome).__name__

    async with FaultProxy(origin.host, origin.port, seed=script.seed) as proxy:
        async with Tasks() as tasks:
            tasks.start_soon(script.run, proxy, note, name="towline storm")
            await anyio.lowlevel.checkpoint()  # so that faults without a delay are set before the first connection
            await follow(proxy, tasks)
        rehearsal.dials = proxy.statistics().dials
    rehearsal.findings += audit_updates(updates, ended=rehearsal.outcome is not None)
    rehearsal.updates = len(updates)
    rehearsal.seconds = round(anyio.current_time() - started, 3)
    return rehearsal
