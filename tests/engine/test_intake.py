"""The intake alone: what one read brings is put in order, delivered, and noted as a sign of the job."""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any

import anyio
import pytest

from towline import JobComplete, MalformedMessage, Paused, Progress
from towline._facts import Answer, Message, Numbered, Received, ServerEvent
from towline._updates import AnyUpdate
from towline.engine.attempts import Link
from towline.engine.intake import Intake
from towline.engine.reader import Reader
from towline.engine.sequence.findings import End, Finding, Gap
from towline.engine.sequence.sequencer import Sequencer
from towline.protocols.event_stream import EventStream
from towline.protocols.messages import Messages
from towline.protocols.polling import Polling
from towline.protocols.towline import Towline
from towline.sources import UnusableAnswer
from towline.statemachine import AnyEvent, JobPaused, JobSpoke, Snapshot

pytestmark = pytest.mark.anyio


def each(message: Any) -> Any:
    """What a message of the job means."""
    match message:
        case {"done": done}:
            return Progress(fraction=done)
        case {"pause": kind}:
            return Paused(kind=kind)
        case {"end": result}:
            return JobComplete(result=result)
    return None


class Taking:
    """An intake whose link is in step, and what it does."""

    def __init__(self, protocol: Any = None) -> None:
        protocol = protocol or Messages("ws://hub/job", each)
        self.sequencer = Sequencer("j1")
        self.counts: Counter[str] = Counter()
        self.snapshot = Snapshot(generation=3)
        self.posted: list[AnyEvent] = []
        self.published: list[AnyUpdate] = []
        self.findings: list[tuple[Finding, int]] = []
        self.no_room: anyio.Event | None = None
        self.link = self.current = Link(3)
        self.intake = Intake(
            "j1",
            Reader(protocol),
            self.sequencer,
            counts=self.counts,
            snapshot=lambda: self.snapshot,
            post=self.posted.append,
            publish=self.published.extend,
            act=self._act,
            is_current=lambda link: self.current is link,
            no_room=lambda: self.no_room,
        )
        self.sequencer.opened("open")
        self.sequencer.release()

    def _act(self, finding: Finding, generation: int) -> None:
        self.findings.append((finding, generation))
        if isinstance(finding, End):
            self.current = Link(4)

    def take(self, *messages: object) -> list[AnyUpdate]:
        """What one read of these messages delivers."""
        self.published.clear()
        batch: list[Received] = [
            one if isinstance(one, Answer) else Message(one if isinstance(one, str) else json.dumps(one))
            for one in messages
        ]
        self.intake.take_in(self.link, batch)
        return self.published


def numbered(seq: int, **more: object) -> dict[str, object]:
    payload = {"progress": 0.5, "status": ""}
    return {"type": "job_progress", "jobId": "j1", "seq": seq, "epoch": "e", "payload": payload, **more}


async def test_one_read_is_delivered_together_and_counted() -> None:
    taking = Taking()
    assert [getattr(update, "fraction", None) for update in taking.take({"done": 0.1}, {"x": 1}, {"done": 0.2})] == [
        0.1,
        0.2,
    ]
    assert taking.counts == {"messages": 3, "unread_messages": 1}
    assert {update.job for update in taking.published} == {"j1"}


async def test_nothing_is_read_after_a_finding_that_ended_the_link() -> None:
    taking = Taking()
    taking.take({"end": 1}, {"end": 2}, {"done": 1})
    ((end, generation),) = taking.findings
    assert isinstance(end, End)
    assert (end.outcome, generation) == (JobComplete(job="j1", result=1), 3)


async def test_a_message_that_cannot_be_read_is_counted_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    taking = Taking()
    with caplog.at_level(logging.DEBUG, "towline"):
        assert [type(update) for update in taking.take("{", {"done": 0.1}, "[")] == [Progress]
    assert taking.counts["malformed_messages"] == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.DEBUG]
    assert "skipped: 'message' is not valid at $: it is not JSON" in caplog.messages[0]


async def test_a_text_that_is_no_json_is_no_sign_of_the_job() -> None:
    """A heartbeat, such as `ping`: a silence must be looked into, because only the state may know the end."""
    taking = Taking()
    taking.take("ping")
    assert (taking.counts["malformed_messages"], taking.intake.last_sign) == (1, None)
    taking.take({"done": 0.1}, "ping")
    assert taking.intake.last_sign == anyio.current_time()


async def test_a_message_that_cannot_be_read_takes_its_place_in_the_log() -> None:
    taking = Taking(Towline("ws://hub/ws/progress", "j1"))
    taking.take(numbered(1))
    taking.take(numbered(2, payload={}), numbered(3))
    assert taking.findings == []
    assert taking.sequencer.applied == Numbered(3, "e")
    taking.take(numbered(5))
    assert [type(finding) for finding, _ in taking.findings] == [Gap]


async def test_a_message_of_another_job_is_no_sign_of_ours() -> None:
    taking = Taking(Towline("ws://hub/ws/progress", "j1"))
    taking.take(numbered(1, jobId="j2", payload={}))
    assert taking.intake.last_sign is None
    taking.take(numbered(1, payload={}))
    assert taking.intake.last_sign == anyio.current_time()


async def test_a_sign_of_the_job_is_an_event_only_after_a_silence() -> None:
    taking = Taking()
    await anyio.sleep(7)
    taking.take({"done": 0.1})
    assert (taking.intake.last_sign, taking.posted) == (7.0, [])
    taking.snapshot = Snapshot(generation=3, stalls=1)
    taking.take({"done": 0.2})
    assert taking.posted == [JobSpoke(generation=3)]


@pytest.mark.parametrize(
    ("messages", "is_paused"),
    [([{"pause": "input"}], True), ([{"pause": "input"}, {"done": 1}], False), ([{"done": 1}], False)],
)
async def test_a_pause_that_the_read_ends_with_is_an_event(messages: list[object], is_paused: bool) -> None:
    taking = Taking()
    taking.take(*messages)
    assert (JobPaused(generation=3) in taking.posted) is is_paused


async def test_an_answer_to_a_poll_is_a_sign_if_it_differs_from_the_last() -> None:
    taking = Taking(Polling("https://hub/job", each))
    for seconds, done, sign in ((1, 0.1, None), (1, 0.1, None), (1, 0.2, 3.0), (1, 0.2, 3.0)):
        await anyio.sleep(seconds)
        taking.take(Answer(200, {}, json.dumps({"done": done}).encode()))
        assert taking.intake.last_sign == sign
    with pytest.raises(UnusableAnswer):
        taking.take(Answer(404))


async def test_reading_waits_for_room_and_that_time_is_no_silence_of_the_job() -> None:
    taking = Taking()
    taking.take({"done": 0.1})
    assert taking.intake.room() is None
    taking.no_room = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            waiting = taking.intake.room()
            assert waiting is not None
            await waiting

        tasks.start_soon(wait)
        await anyio.sleep(50)
        assert taking.intake.is_paused
        assert taking.intake.last_sign == 50.0
        had, taking.no_room = taking.no_room, None
        had.set()
    assert not taking.intake.is_paused
    await anyio.sleep(5)
    assert taking.intake.last_sign == 50.0


async def test_a_sync_never_waits_for_room() -> None:
    taking = Taking()
    taking.no_room = anyio.Event()
    taking.sequencer.resync()
    assert taking.intake.room() is None


async def test_a_fetch_may_wait_for_the_next_read() -> None:
    taking = Taking()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(taking.intake.next_batch)
        await anyio.sleep(1)
        assert tasks.cancel_scope.cancel_called is False
        taking.take()


@pytest.mark.parametrize("is_event", [True, False])
async def test_messages_of_which_nothing_was_ever_read_are_warned_of(
    is_event: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """For example because the server's events have types and the protocol does not ask for them."""
    taking = Taking(EventStream("http://hub/job", each) if is_event else None)
    news = '{"percent": 5}'
    said: Received = ServerEvent("stage", news, None) if is_event else Message(news)
    for count in range(5):
        assert len(caplog.records) == (count > 2)
        taking.intake.take_in(taking.link, [said])
    name, kind = ("event_stream", "an event of the type 'stage'") if is_event else ("messages", "a message")
    [record] = caplog.records
    assert record.getMessage() == (
        f"job {taking.intake.reader.protocol.job}: the protocol {name!r} read nothing from the first 3 messages; "
        f"the last is {kind}: does it fit this server?"
    )


async def test_messages_that_are_not_for_us_are_no_warning_once_one_was(caplog: pytest.LogCaptureFixture) -> None:
    taking = Taking()
    assert taking.take({}, {}, {"done": 0.5}, {}, {}) == [Progress(fraction=0.5, job="j1")]
    assert taking.counts["unread_messages"] == 4
    assert caplog.records == []


async def test_an_error_of_the_protocol_names_it() -> None:
    def broken(message: object) -> None:
        raise MalformedMessage("mine", "$", "no") if message == 1 else ZeroDivisionError

    taking = Taking(Messages("ws://hub/job", broken))
    assert taking.take(1) == []
    assert taking.counts["malformed_messages"] == 1
    with pytest.raises(Exception, match="read raised ZeroDivisionError"):
        taking.take(2)
