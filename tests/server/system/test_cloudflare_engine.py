"""The engine follows jobs of the Cloudflare example: through broken links and a killed workerd, each event once."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

import towline
from towline import State
from towline.protocols import Towline
from towline.statemachine import Backoff, Policy
from towline.testing import FaultProxy, audit_updates

ROWS = 100
CSV = b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(ROWS))
POLICY = Policy(dial_spacing=0.2, ping_after=0.5, lost_after=1.2, backoff=Backoff(base=0.2, cap=1, shared_window=0.5))

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

Act = Callable[[], Awaitable[object]]


@pytest.fixture(scope="module")
def slow(workerd: Any) -> Any:
    """A backend whose jobs take five seconds."""
    return workerd(SLICE_PAUSE_MS=50)


@pytest.fixture
def start(client_of: Any, start_key: Any) -> Callable[[Any], Awaitable[tuple[str, str]]]:
    """Start a job; its id and token."""

    def call(backend: Any, body: bytes) -> tuple[str, str]:
        with client_of(backend.url) as client:
            assert client.start(body, **start_key).status_code == 202
            return client.job, client.token

    return lambda backend, body=CSV: anyio.to_thread.run_sync(call, backend, body)


def line_to(port: int, job: str, token: str | towline.Token, **own: Any) -> towline.Connection:
    protocol = Towline(f"ws://127.0.0.1:{port}/ws/progress", job, **own)
    return towline.Connection(protocol, token=token, policy=POLICY)


async def follow(line: towline.Connection, acts: dict[int, Act] | None = None) -> list[towline.AnyUpdate]:
    """Follow the job to its end; once so many rows were told, do what is to be done then."""
    acts = dict(acts or {})
    updates: list[towline.AnyUpdate] = []
    with anyio.fail_after(60):
        async for update in line:
            updates.append(update)
            if isinstance(update, towline.Progress):
                for count in [count for count in acts if count <= (update.processed_count or 0)]:
                    await acts.pop(count)()
    assert acts == {}
    return updates


async def events_reach(backend: Any, job: str, count: int) -> None:
    """Wait until the log on disk has so many events; the backend is not asked."""
    while len(backend.events(job)) < count:  # noqa: ASYNC110 - another process writes it
        await anyio.sleep(0.02)


def check_whole(backend: Any, job: str, updates: list[towline.AnyUpdate]) -> None:
    """The log holds each row once, in order, and the follower was told the log."""
    assert audit_updates(updates, backend.logged(job)) == []
    events = backend.events(job)
    assert [event["seq"] for event in events] == list(range(1, ROWS + 3))
    assert [event["payload"]["processedCount"] for event in events[1:-1]] == list(range(1, ROWS + 1))
    end = updates[-1]
    assert isinstance(end, towline.JobComplete)
    assert [book["title"] for book in end.result["books"]] == [f"Book {n}" for n in range(ROWS)]


async def test_undisturbed(slow: Any, start: Any) -> None:
    job, token = await start(slow)
    async with line_to(slow.port, job, token) as line:
        updates = await follow(line)
    check_whole(slow, job, updates)
    assert line.statistics().connects == 1


async def test_as_a_browser_does(slow: Any, start: Any) -> None:
    job, token = await start(slow)
    async with line_to(slow.port, job, token, token_in="subprotocol:towline", subprotocols=("towline",)) as line:
        check_whole(slow, job, await follow(line))


async def test_through_broken_links(slow: Any, start: Any) -> None:
    job, token = await start(slow)
    async with FaultProxy("127.0.0.1", slow.port) as proxy, line_to(proxy.port, job, token) as line:

        async def black_hole() -> None:
            proxy.black_hole()
            await line.wait_for(State.RECONNECTING)
            await proxy.heal()

        acts = {8: partial(proxy.cut, "rst"), 30: partial(proxy.cut, "fin"), 50: black_hole}
        updates = await follow(line, acts)
    check_whole(slow, job, updates)
    assert line.statistics().connects == 4
    assert [update.kind for update in updates if isinstance(update, towline.Resynced)] == ["replay"] * 3


async def test_cut_at_any_byte(slow: Any, start: Any) -> None:
    job, token = await start(slow)
    async with FaultProxy("127.0.0.1", slow.port) as proxy, line_to(proxy.port, job, token) as line:
        for size in (90, 200, 313, 500, 1024, 2500):
            proxy.cut_after(size, "down")
        updates = await follow(line)
        assert proxy.statistics().cuts == 6
    check_whole(slow, job, updates)


async def test_over_a_killed_workerd(workerd: Any, start: Any) -> None:
    backend = workerd(SLICE_PAUSE_MS=50)
    job, token = await start(backend)

    async def kill() -> None:
        await anyio.to_thread.run_sync(backend.kill)
        await anyio.to_thread.run_sync(backend.start)

    async with line_to(backend.port, job, token) as line:
        updates = await follow(line, {5: kill, 40: kill, 70: kill})
    check_whole(backend, job, updates)
    assert line.statistics().connects == 4


async def test_a_killed_workerds_job_goes_on_with_nobody_there(workerd: Any, start: Any) -> None:
    backend = workerd(SLICE_PAUSE_MS=20)
    job, token = await start(backend)
    with anyio.fail_after(60):
        await events_reach(backend, job, 5)
        await anyio.to_thread.run_sync(backend.kill)
        assert len(backend.events(job)) < ROWS
        await anyio.to_thread.run_sync(backend.start)
        await events_reach(backend, job, ROWS + 2)
    async with line_to(backend.port, job, token) as line:
        check_whole(backend, job, await follow(line))


async def test_cancel(slow: Any, start: Any) -> None:
    job, token = await start(slow)
    answers: list[str] = []
    async with line_to(slow.port, job, token) as line:

        async def cancel() -> None:
            answers.append(await line.cancel_job())

        updates = await follow(line, {5: cancel})
    assert answers == ["accepted"]
    assert isinstance(updates[-1], towline.JobCancelled)
    assert audit_updates(updates, slow.logged(job)) == []


async def test_a_cancel_that_comes_too_late(slow: Any, start: Any) -> None:
    job, token = await start(slow, b"title,author\nA,B\n")
    async with line_to(slow.port, job, token) as line:
        line.background(grace=0)
        await events_reach(slow, job, 3)
        assert await line.cancel_job() == "too_late"
        [*_, end] = [update async for update in line]
    assert isinstance(end, towline.JobComplete)


async def test_a_token_that_runs_out_is_refreshed(workerd: Any, start: Any, client_of: Any) -> None:
    backend = workerd(SLICE_PAUSE_MS=50, TOKEN_SECONDS=2, GRACE_SECONDS=30)
    job, token = await start(backend)
    async with FaultProxy("127.0.0.1", backend.port) as proxy:
        async with line_to(proxy.port, job, towline.Token(token, refresh=True)) as line:
            updates = await follow(line, {60: proxy.cut})
    check_whole(backend, job, updates)

    def refused() -> int:
        with client_of(backend.url) as client:
            client.token = token
            status: int = client.http.get(f"/api/job-state/{job}", headers=client.auth).status_code
            return status

    assert await anyio.to_thread.run_sync(refused) == 401


@pytest.mark.parametrize(("unknown", "reason"), [(False, "auth"), (True, "gone")])
async def test_refusals_are_final(slow: Any, start: Any, unknown: bool, reason: str) -> None:
    job, _ = await start(slow)
    with pytest.raises(towline.Exhausted) as gave_up:
        async with line_to(slow.port, "0" * 64 if unknown else job, "nonsense") as line:
            await follow(line)
    assert gave_up.value.reason == reason


async def test_a_late_client_is_told_that_the_job_is_gone(workerd: Any, start: Any) -> None:
    backend = workerd(RESULT_SECONDS=1)
    job, token = await start(backend, b"title,author\nA,B\n")
    await anyio.sleep(3)
    with pytest.raises(towline.Exhausted) as gave_up:
        async with line_to(backend.port, job, token) as line:
            await follow(line)
    assert gave_up.value.reason == "gone"
