"""A rehearsal: follows a real job on a real server through a storm of faults, and reports the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from html import escape as escape_html
from typing import Any, Final

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, TaskGroup
from msgspec import Struct, field

from .._connection import Connection
from .._exceptions import Exhausted
from .._text import escape
from .._updates import AnyUpdate
from ..statemachine import State, StateChange
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
        """Draw a picture over time: faults above, states below."""
        return _draw(self)


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

    async def follow(proxy: FaultProxy, tasks: TaskGroup) -> None:
        detour = Detour(proxy, allow_insecure=allow_insecure)
        async with Connection(url, network=detour, on_state=changed, **options) as line:
            tasks.start_soon(stop_early, line)
            try:
                async for update in line:
                    updates.append(update)  # noqa: PERF401 - what came before it raises is kept
            except Exhausted as error:
                rehearsal.findings.append(f"gave up: {escape(str(error))}")
            if line.outcome is not None:
                rehearsal.outcome = type(line.outcome).__name__

    failure: Exception | None = None
    async with FaultProxy(origin.host, origin.port, seed=script.seed) as proxy:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(script.run, proxy, note)
            await anyio.lowlevel.checkpoint()  # so that faults without a delay are set before the first connection
            try:
                await follow(proxy, tasks)
            except Exception as error:
                failure = error  # raised after the task group, which would wrap it
            tasks.cancel_scope.cancel()
        rehearsal.dials = proxy.statistics().dials
    if failure is not None:
        raise failure
    rehearsal.findings += audit_updates(updates, ended=rehearsal.outcome is not None)
    rehearsal.updates = len(updates)
    rehearsal.seconds = round(anyio.current_time() - started, 3)
    return rehearsal


# --- the picture -------------------------------------------------------------------------------------------------

_LANE: Final = 34
_LEFT: Final = 110
_TOP: Final = 100
_WIDTH: Final = 1000


def _draw(rehearsal: Rehearsal) -> str:
    lanes = {state.value: _TOP + 40 + _LANE * place for place, state in enumerate(State)}
    end = max([rehearsal.seconds, 0.001, *(entry.at for entry in rehearsal.entries)])
    bottom = max(lanes.values()) + 30

    def x(at: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 20) * at / end

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 20}" width="{_WIDTH}" '
        f'height="{bottom + 20}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f"<title>A rehearsal with seed {rehearsal.seed}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_LEFT - 10}" y="{_TOP}" text-anchor="end" fill="#a03020">faults</text>',
    ]
    for name, y in lanes.items():
        out.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_WIDTH - 20}" y2="{y}" stroke="#dddddd"/>')
        out.append(f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end" fill="#333333">{name}</text>')
    state, points = State.IDLE.value, [f"{x(0):.1f},{lanes[State.IDLE.value]}"]
    for entry in rehearsal.entries:
        label = escape_html(f"{entry.at:.3f} s: {entry.state or ''} {entry.what}")
        if entry.state is None:
            colour = "#2f7d32" if entry.what == "heal" else "#a03020"
            at, top, name = f"{x(entry.at):.1f}", _TOP - 12, escape_html(entry.what.partition(" ")[0])
            out.append(
                f'<line x1="{at}" y1="{top}" x2="{at}" y2="{bottom - 20}" '
                f'stroke="{colour}" stroke-dasharray="3 3" stroke-width="1.5"><title>{label}</title></line>'
            )
            out.append(
                f'<text x="{at}" y="{top - 4}" transform="rotate(-60 {at} {top - 4})" fill="{colour}">{name}</text>'
            )
        else:
            points += [f"{x(entry.at):.1f},{lanes[state]}", f"{x(entry.at):.1f},{lanes[entry.state]}"]
            state = entry.state
            place = f'cx="{x(entry.at):.1f}" cy="{lanes[state]}"'
            out.append(f'<circle {place} r="4" fill="#234a75"><title>{label}</title></circle>')
    points.append(f"{x(end):.1f},{lanes[state]}")
    out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="#234a75" stroke-width="2"/>')
    out += [
        f'<text x="{x(at):.1f}" y="{bottom}" text-anchor="middle" fill="#666666">{at:.3g} s</text>'
        for at in (end * part / 4 for part in range(5))
    ]
    return "\n".join([*out, "</svg>"]) + "\n"
