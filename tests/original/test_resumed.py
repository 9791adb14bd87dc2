"""A follower of the original backend is resumed by the job's id alone: its record has the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from recordings import JOB
from stand_in import URL, StandIn

from towline import Connection, JobComplete, MemoryTokenStore, Policy, Progress, Secret
from towline._facts import Received, Want
from towline.protocols import Bookstrack
from towline.protocols._shared.recording import dump_line, load_lines
from towline.storage import RecordKey

pytestmark = pytest.mark.anyio


def options(server: StandIn, store: MemoryTokenStore) -> dict[str, Any]:
    return {"network": server.network, "store": store}


async def follow_until_progress(server: StandIn, store: MemoryTokenStore, protocol: Bookstrack) -> None:
    """Follow until the first progress; the process then ends without a word."""
    async with Connection(protocol, token=server.token, **options(server, store)) as line:
        async for update in line:
            if isinstance(update, Progress):
                break
        for socket in server.sockets:
            server.cut(socket)


async def test_by_its_id(backend: Callable[..., StandIn]) -> None:
    store = MemoryTokenStore(now=anyio.current_time)
    async with backend("newest-batch", spacing=5) as server:
        server.start()
        await follow_until_progress(server, store, Bookstrack(URL, JOB))
        record = await store.read(RecordKey("bookstrack", "http://backend:80/ws/progress", JOB))
        assert record is not None
        assert (record.token, dict(record.parameters)) == (Secret(server.token), {"url": URL})
        async with Connection(job=JOB, **options(server, store)) as line:
            assert isinstance(await line.result(), JobComplete)
            # Its state says `running` even after the end, so a silence must have a limit.
            assert line._lifecycle.policy.stall_limit == 3600


async def test_the_program_s_own_limit_of_a_silence_stands(backend: Callable[..., StandIn]) -> None:
    store = MemoryTokenStore(now=anyio.current_time)
    async with backend("newest-batch", spacing=5) as server:
        server.start()
        await follow_until_progress(server, store, Bookstrack(URL, JOB))
        async with Connection(job=JOB, policy=Policy(stall_limit=7200), **options(server, store)) as line:
            await line.result()
            assert line._lifecycle.policy.stall_limit == 7200


async def test_with_the_parameters_that_it_was_followed_with(backend: Callable[..., StandIn]) -> None:
    store = MemoryTokenStore(now=anyio.current_time)
    protocol = Bookstrack(URL, JOB, headers={"X-Key": "hunter2"}, cancel_path="/api/enrichment/cancel")
    async with backend("newest-batch", spacing=5) as server:
        server.start()
        await follow_until_progress(server, store, protocol)
        (record,) = await store.find(JOB)
        assert dict(record.secrets) == {"headers.0.X-Key": Secret("hunter2")}
        assert "hunter2" not in repr(record)
        calls = len(server.calls)
        async with Connection(job=JOB, **options(server, store)) as line:
            await line.result()
        assert {call.headers.get("x-key") for call in server.calls[calls:]} == {"hunter2"}


async def test_what_the_server_says_is_recorded_without_the_token(backend: Callable[..., StandIn]) -> None:
    lines: list[str] = []

    def observe(want: Want, received: Received) -> None:
        lines.append(dump_line(want, received))

    store = MemoryTokenStore(now=anyio.current_time)
    async with backend("newest-batch") as server:
        server.start()
        line = Connection(Bookstrack(URL, JOB), token=server.token, **options(server, store))
        line.observe(observe)
        async with line:
            outcome = await line.result()
        assert server.token not in "".join(lines)
    # The recording alone leads to the same end.
    facts = [fact for want, received in load_lines(lines) for fact in Bookstrack(URL, JOB).read(want, received)]
    assert [fact.outcome for fact in facts if hasattr(fact, "outcome")] == [outcome]


async def test_a_parameter_that_changed_is_stored(backend: Callable[..., StandIn]) -> None:
    store = MemoryTokenStore(now=anyio.current_time)
    async with backend("newest-batch", spacing=5) as server:
        server.start()
        await follow_until_progress(server, store, Bookstrack(URL, JOB))
        await follow_until_progress(server, store, Bookstrack(URL, JOB, headers={"X-Key": "hunter2"}))
        (record,) = await store.find(JOB)
        assert record.token == Secret(server.token)
        assert dict(record.secrets) == {"headers.0.X-Key": Secret("hunter2")}
