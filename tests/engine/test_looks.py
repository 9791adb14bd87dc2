"""The state call that a sync makes: its tries, its waits, and what ends them; and the looks alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import anyio
import pytest

from towline import Connection, Resynced, State, Token, TowlineError
from towline._tasks import Tasks
from towline._updates import AnyUpdate
from towline.engine.intake import Intake
from towline.engine.looks import Looks
from towline.engine.reader import Reader
from towline.engine.sequence.findings import End, Finding
from towline.engine.sequence.sequencer import Sequencer
from towline.engine.settings import Settings
from towline.engine.tokens import TokenSource
from towline.statemachine import AnyEvent, AskState, Cause, Facts, FetchState, Lost, Place, Purpose, Refused, Snapshot
from towline.testing import Answer, Drop, Hang, Reaction, ScriptedServer

pytestmark = pytest.mark.anyio
Follow = Callable[..., Connection]


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A server without a log: only the state brings its followers in step."""
    async with ScriptedServer(numbered=False) as scripted:
        scripted.job("j1", token="t1")
        yield scripted


async def waits(follow: Follow, server: ScriptedServer, *answers: Answer) -> list[float]:
    """The seconds between the state calls until the connection is in step."""
    server.script("state", *answers)
    async with follow(server) as line:
        await line.wait_for(State.CONNECTED)
        return [later - earlier for earlier, later in pairwise(server.times("state"))]


@pytest.mark.parametrize("status", [500, 502, 503, 599, 408, 425, 429])
async def test_a_passing_trouble_is_tried_again(follow: Follow, server: ScriptedServer, status: int) -> None:
    assert await waits(follow, server, *[Answer(status)] * 3) == pytest.approx([1, 2, 4])


async def test_a_longer_retry_after_is_kept(follow: Follow, server: ScriptedServer) -> None:
    longer, shorter = Answer(429, headers={"retry-after": "9"}), Answer(503, headers={"retry-after": "0"})
    assert await waits(follow, server, longer, shorter) == pytest.approx([9, 2])


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        (Answer(503, headers={"retry-after": "1"}), 4),
        # A working link must not wait a day for a state.
        (Answer(503, headers={"retry-after": "86400"}), 1),
        *[(Answer(status), 1) for status in (204, 301, 400, 404, 410, 418)],
        *[(Answer(200, body), 1) for body in (b"<html>", b"", b"[]", b'{"status":7}', b"\xff", b"[" * 100_000)],
        (Answer(200, b" " * ((16 << 20) + 1)), 1),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_the_link_goes_in_step_without_a_state(
    follow: Follow, server: ScriptedServer, answer: Answer, calls: int
) -> None:
    server.always("state", answer)
    async with follow(server) as line:
        await line.wait_for(State.CONNECTED)
        assert len(server.times("state")) == calls
        first: Any = await anext(aiter(line))
        assert isinstance(first, Resynced)
        assert (first.kind, line.statistics().retries) == ("unavailable", 0)


# --- alone -----------------------------------------------------------------------------------------------------------


class Alone:
    """Looks, whose calls go to a scripted server, and what they lead to."""

    def __init__(self, settings: Settings, tasks: Tasks) -> None:
        reader = Reader(settings.protocol)
        self.sequencer = Sequencer(settings.job)
        self.snapshot = Snapshot(state=State.CONNECTED, generation=3)
        self.did: list[tuple[object, ...]] = []
        tokens = TokenSource(
            settings.job,
            reader,
            settings.access,
            provider=None,
            exchanges=True,
            required=True,
            deadline=30.0,
            changed=lambda token: None,
        )
        tokens.give(Token("t1"))
        intake = Intake(
            settings.job,
            reader,
            self.sequencer,
            counts=Counter(),
            snapshot=lambda: self.snapshot,
            post=self._post,
            publish=self._publish,
            act=self._act,
            is_current=lambda link: True,
            no_room=lambda: None,
        )
        self.looks = Looks(
            settings,
            tasks,
            reader,
            tokens,
            self.sequencer,
            intake,
            snapshot=lambda: self.snapshot,
            facts=lambda: Facts(now=90.0, path_up=True, foreground=True, token_id="1", renewable=True),
            post=self._post,
            publish=self._publish,
            act=self._act,
            failed=self._failed,
            finished=lambda: self.did.append(("finished",)),
        )

    def _post(self, event: AnyEvent) -> None:
        self.did.append(("post", type(event).__name__))

    def _publish(self, updates: list[AnyUpdate]) -> None:
        self.did += [("publish", type(update).__name__) for update in updates]

    def _act(self, finding: Finding, generation: int) -> None:
        self.did.append(("act", type(finding).__name__, generation))

    async def _failed(self, error: TowlineError, place: Place, generation: int, fetch: int) -> None:
        self.did.append(("failed", type(error).__name__, place, generation, fetch))

    async def fetch(self, purpose: Purpose, **more: Any) -> list[tuple[object, ...]]:
        """What a fetch of this purpose leads to."""
        self.did.clear()
        self.looks.fetch_state(FetchState(purpose=purpose, generation=3, fetch=7, **more))
        await anyio.sleep(100)
        return self.did


@pytest.fixture
async def alone(server: ScriptedServer, make_settings: Callable[..., Settings]) -> AsyncIterator[Alone]:
    async with Tasks() as tasks:
        yield Alone(make_settings(server.network), tasks)


async def test_a_state_brings_the_link_in_step(alone: Alone, server: ScriptedServer) -> None:
    alone.sequencer.opened("state")
    assert await alone.fetch(Purpose.SYNC, delay=2.0) == [("act", "Synced", 3), ("finished",)]
    assert server.times("state") == [2.0]
    assert (alone.looks.answered, alone.looks.running) == (True, False)


async def test_a_sync_that_fails_says_so_after_its_tries(alone: Alone, server: ScriptedServer) -> None:
    alone.sequencer.opened("state")
    server.always("state", Answer(503))
    assert await alone.fetch(Purpose.SYNC) == [
        ("failed", "UnusableAnswer", Place.SYNC, 3, 7),
        ("finished",),
    ]
    assert len(server.times("state")) == 4
    assert not alone.looks.answered


async def test_a_look_tries_once_and_reports_only_what_is_clear(alone: Alone, server: ScriptedServer) -> None:
    assert await alone.fetch(Purpose.STATUS) == [("finished",)]
    server.script("state", Answer(503))
    assert await alone.fetch(Purpose.STATUS) == [("failed", "UnusableAnswer", Place.STATUS, 3, 7), ("finished",)]
    server.script("state", Answer(body={"status": "complete"}))
    assert await alone.fetch(Purpose.STATUS) == [("act", "End", 3), ("finished",)]


async def test_a_look_into_a_silence_reports_it_unless_the_job_has_moved(alone: Alone, server: ScriptedServer) -> None:
    alone.sequencer.opened("state")
    alone.sequencer.unavailable()
    alone.sequencer.release()
    silent = [("publish", "Stalled"), ("post", "StillSilent"), ("finished",)]
    server.script("state", *[Answer(body={"status": "running", "processedCount": 1})] * 2)
    await alone.fetch(Purpose.STALL)
    assert await alone.fetch(Purpose.STALL) == silent
    server.script("state", Answer(body={"status": "running", "processedCount": 5}))
    assert (await alone.fetch(Purpose.STALL))[:2] == [("publish", "Resynced"), ("publish", "Progress")]
    failed = ("failed", "UnusableAnswer", Place.STATUS, 3, 7)
    server.always("state", Answer(503))
    assert await alone.fetch(Purpose.STALL) == [failed, *silent]
    alone.snapshot = Snapshot(state=State.RECONNECTING, generation=3)
    assert await alone.fetch(Purpose.STALL) == [failed, ("finished",)]


async def test_a_new_fetch_replaces_the_last_and_one_can_be_given_up(alone: Alone, server: ScriptedServer) -> None:
    server.always("state", Hang())
    alone.looks.fetch_state(FetchState(purpose=Purpose.STATUS, generation=3, fetch=1))
    await anyio.sleep(0.1)
    server.always("state", None)
    assert await alone.fetch(Purpose.STATUS) == [("finished",)]
    server.always("state", Hang())
    alone.looks.fetch_state(FetchState(purpose=Purpose.STATUS, generation=3, fetch=2))
    await anyio.sleep(0.1)
    assert alone.looks.running
    alone.looks.cancel_fetch()
    await anyio.sleep(100)
    assert (alone.looks.running, alone.did) == (False, [("finished",)])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (Answer(body={"status": "complete"}), "End"),
        (Answer(body={"status": "running"}), "otherwise"),
        (Answer(404), "gone"),
        (Answer(500), "otherwise"),
        (Drop(), "otherwise"),
    ],
)
async def test_a_state_decides_what_a_failure_means(
    alone: Alone, server: ScriptedServer, answer: Reaction, found: str
) -> None:
    server.script("state", answer)
    otherwise = Lost(cause=Cause(code="ended", text="it ended"))
    gone = Refused(reason="gone", cause=Cause(code="ended", text="it ended"))
    meaning = await alone.looks.ask_state(AskState(otherwise=otherwise, gone=gone))
    assert meaning == {"otherwise": otherwise, "gone": gone}.get(found, meaning)
    assert isinstance(meaning, End) is (found == "End")
