"""The source that polls, against scripted answers in memory under virtual time."""

from collections.abc import Callable
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import anyio
import pytest
from scripted_wire import WALL, Script, Step, access, answer

from towline._exceptions import ConnectionBroken, DeadlineExceeded, InvalidArgument, MessageTooBig, UnexpectedResponse
from towline._facts import Answer, Request
from towline._secret import Secret
from towline.sources import Source, open_source
from towline.sources.poll import LAST_WAIT, MOST_ADVICE
from towline.testing import NoAnswer, Unreachable

pytestmark = pytest.mark.anyio

URL = "http://localhost/job"
ASKED = Request(via="poll", url=URL)


async def opened(script: Script, *asked: Request, **change: Any) -> Source:
    """Poll with these requests in order, the last one again and again."""
    requests = list(asked or (ASKED,))

    async def again() -> Request:
        return requests.pop(0) if len(requests) > 1 else requests[0]

    return await open_source(await again(), access(script.network, **change), again)


async def polled(script: Script, count: int, *asked: Request, **change: Any) -> list[list[Answer]]:
    """What `count` calls of `receive` return."""
    async with script.running():
        source = await opened(script, *asked, **change)
        received = [await source.receive() for _ in range(count)]
        await source.leave(1001)
    return received  # type: ignore[return-value]


def waits(script: Script) -> list[float]:
    times = [seen.at for seen in script.seen]
    return [round(later - earlier, 6) for earlier, later in pairwise(times)]


# --- waits ----------------------------------------------------------------------------------------------------------


async def test_waits_grow_to_the_longest() -> None:
    script = Script(*[[answer()]] * 14)
    await polled(script, 14)
    expected = [min(0.25 * 1.5**power, LAST_WAIT) for power in range(13)]
    assert expected[:2] == [0.25, 0.375]
    assert expected[-2:] == [15, 15]
    assert waits(script) == pytest.approx(expected)


@pytest.mark.parametrize("drawn", [0.0, 0.4, 1.0])
async def test_jitter_shortens_a_wait_by_a_quarter_at_most(drawn: float) -> None:
    script = Script(*[[answer()]] * 4)
    await polled(script, 4, random=lambda: drawn)
    expected = [wait * (1 - drawn / 4) for wait in (0.25, 0.375, 0.5625)]
    assert waits(script) == pytest.approx(expected)


@pytest.mark.parametrize("drawn", [0.0, 0.4, 1.0])
async def test_jitter_adds_a_tenth_to_advice_at_most_and_never_undercuts_it(drawn: float) -> None:
    script = Script(*[[answer(Retry_After="20")]] * 3)
    await polled(script, 3, random=lambda: drawn)
    assert waits(script) == pytest.approx([20 + 2 * drawn] * 2)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", 7),
        ("0", 0.25),
        ("1000000000", MOST_ADVICE),
        ("9" * 60, MOST_ADVICE),
        (formatdate(WALL + 90, usegmt=True), 90),
        (formatdate(WALL - 90, usegmt=True), 0.25),
        ("-1", None),
        ("nan", None),
        ("soon", None),
    ],
)
@pytest.mark.parametrize("status", [200, 202, 429, 503])
async def test_retry_after_comes_first(status: int, value: str, wait: float | None) -> None:
    script = Script([answer(status, Retry_After=value)], [answer()], [answer()])
    async with script.running():
        source = await opened(script)
        assert source.retry == wait
        for _ in range(3):
            await source.receive()
        assert source.retry is None
        await source.leave(1001)
    # It holds once; then the usual waits go on where they were.
    assert waits(script) == pytest.approx([0.25, 0.375] if wait is None else [wait, 0.25])


@pytest.mark.parametrize(
    ("seconds", "wait"),
    [(7, 7), (0, 0.25), (-1, 0.25), (1e9, MOST_ADVICE), (float("inf"), MOST_ADVICE), (float("nan"), 0.25 * 1.5)],
)
async def test_advice_comes_first(seconds: float, wait: float) -> None:
    script = Script(*[[answer()]] * 4)
    async with script.running():
        source = await opened(script)
        await source.receive()
        await source.receive()
        source.advise(seconds)
        await source.receive()
        await source.receive()
        assert source.retry is None
        await source.leave(1001)
    assert waits(script)[1] == pytest.approx(wait)
    assert waits(script)[2] == pytest.approx(0.25 * 1.5 ** (2 if seconds != seconds else 1))


@pytest.mark.parametrize(("advice", "wait"), [(3, 20), (30, 30)])
async def test_advice_never_undercuts_retry_after(advice: float, wait: float) -> None:
    script = Script([answer(Retry_After="20")], [answer()])
    async with script.running():
        source = await opened(script)
        await source.receive()
        source.advise(advice)
        await source.receive()
        await source.leave(1001)
    assert waits(script) == [wait]


# --- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 303, 308, 400, 401, 404, 410, 429, 500, 503])
async def test_an_answer_of_any_status_is_returned(status: int) -> None:
    body = b"" if status == 204 else b'{"a":1}'
    script = Script(*[[answer(status, body, Location="http://elsewhere/", X_Y="z")]] * 2)
    first, second = await polled(script, 2)
    assert first == second
    (got,) = first
    assert (got.status, got.body, got.headers["location"], got.headers["x-y"]) == (
        status,
        body,
        "http://elsewhere/",
        "z",
    )
    assert [dial.host for dial in script.network.dials] == ["localhost"]


async def test_last_received_is_the_time_of_the_answer() -> None:
    script = Script([answer()], [3.0, answer()])
    async with script.running():
        source = await opened(script)
        assert source.last_received == anyio.current_time()
        await source.receive()
        await source.receive()
        assert source.last_received == pytest.approx(script.seen[1].at + 3)
        await source.leave(1001)


async def test_a_compressed_answer_is_an_error() -> None:
    script = Script([answer(200, b"x", Content_Encoding="gzip")])
    async with script.running():
        with pytest.raises(UnexpectedResponse, match="turn compression off"):
            await opened(script)


async def test_a_body_without_an_end_is_an_error() -> None:
    script = Script([answer()], [b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * (1 << 20)] * 17, "hang"])
    async with script.running():
        source = await opened(script)
        await source.receive()
        with pytest.raises(MessageTooBig, match="16777216 bytes"):
            await source.receive()
        await source.leave(1001)


@pytest.mark.parametrize("steps", [["hang"], [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "hang"]])
@pytest.mark.parametrize("first", [True, False])
async def test_the_deadline_of_a_poll(first: bool, steps: list[Step]) -> None:
    script = Script(*([] if first else [[answer()]]), steps)
    async with script.running():
        if first:
            with pytest.raises(DeadlineExceeded, match="after 4 s"):
                await opened(script, connect_deadline=4.0)
        else:
            source = await opened(script, connect_deadline=4.0)
            await source.receive()
            with pytest.raises(DeadlineExceeded, match="after 4 s"):
                await source.receive()
            await source.leave(1001)
        assert anyio.current_time() - script.seen[-1].at == pytest.approx(4)


@pytest.mark.parametrize("fate", [Unreachable(), NoAnswer()])
async def test_a_server_that_cannot_be_reached(fate: Any) -> None:
    script = Script()
    script.network.weather = fate
    async with script.running():
        with pytest.raises(Exception, match=r"could not connect|timed out after 10 s"):
            await opened(script)


async def test_nothing_can_be_sent() -> None:
    script = Script([answer()])
    async with script.running():
        source = await opened(script)
        await source.start(())
        with pytest.raises(InvalidArgument, match="opening: only a WebSocket has opening messages"):
            await source.start(["x"])
        with pytest.raises(InvalidArgument, match="send: only a WebSocket takes messages"):
            await source.send("x")
        await source.leave(1001)


# --- entity tags ----------------------------------------------------------------------------------------------------


def tags(script: Script) -> list[str | None]:
    return [seen.headers.get("if-none-match") for seen in script.seen]


async def test_a_tag_is_sent_back_and_304_is_nothing_new() -> None:
    first, none, last = answer(200, b"a", ETag='W/"1"'), answer(304), answer(200, b"b", ETag='"2"')
    script = Script([first], [none], [none], [last], [answer()])
    received = await polled(script, 5)
    assert [[one.body for one in answers] for answers in received] == [[b"a"], [], [], [b"b"], [b""]]
    assert tags(script) == [None, 'W/"1"', 'W/"1"', 'W/"1"', '"2"']


async def test_a_tag_belongs_to_one_url() -> None:
    other = Request(via="poll", url=Secret(f"{URL}?after=1"))
    script = Script(*[[answer(200, b"a", ETag='"1"')]] * 5)
    await polled(script, 5, ASKED, other, other, ASKED, ASKED)
    assert tags(script) == [None, None, '"1"', None, '"1"']


@pytest.mark.parametrize(
    "between",
    [answer(200, b"x"), answer(202, b"x", ETag='"2"'), answer(503), answer(404, ETag='"3"')],
)
async def test_an_answer_without_a_tag_of_its_own_ends_the_old_one(between: bytes) -> None:
    """Otherwise a 304 could hide that the server went back to an older answer."""
    script = Script([answer(200, b"a", ETag='"1"')], [between], [answer()])
    await polled(script, 3)
    assert tags(script) == [None, '"1"', None]


@pytest.mark.parametrize("tag", ["", "a b", "é", '"' + "x" * 300 + '"', "\x9b31m"])
async def test_a_tag_that_cannot_be_sent_back_is_not_used(tag: str) -> None:
    raw = answer(200, b"a", ETag=tag).decode().encode("latin-1")
    script = Script([raw], [raw])
    assert len(await polled(script, 2)) == 2
    assert tags(script) == [None, None]


async def test_the_protocols_own_condition_stands() -> None:
    asked = Request(via="poll", url=URL, headers=(("if-none-match", '"mine"'),))
    script = Script([answer(200, b"a", ETag='"1"')], [answer()])
    await polled(script, 2, asked)
    assert tags(script) == ['"mine"', '"mine"']


async def test_a_post_has_no_condition() -> None:
    """A server answers 412 to it (RFC 9110 section 13.1.2)."""
    asked = Request(via="poll", url=URL, method="POST", body=b"{}")
    script = Script(*[[answer(200, b"a", ETag='"1"')]] * 4)
    await polled(script, 4, ASKED, asked, asked, ASKED)
    assert tags(script) == [None, None, None, None]


async def test_nothing_new_keeps_the_advice() -> None:
    """The content that is still valid came with it."""
    script = Script([answer(200, ETag='"1"')], [answer(304)], [answer(304, Retry_After="40")], [answer()], [answer()])
    async with script.running():
        source = await opened(script)
        await source.receive()
        source.advise(20)
        for _ in range(4):
            await source.receive()
        await source.leave(1001)
    assert waits(script) == pytest.approx([20, 20, 40, 0.25])


# --- connections ----------------------------------------------------------------------------------------------------


async def test_one_connection_and_a_new_one_after_its_end() -> None:
    ended = answer(200, Connection="close")
    script = Script([answer()], [answer(503)], [answer()], [ended], [answer()], [answer(), "fin"], [answer()])
    await polled(script, 7)
    assert [seen.link for seen in script.seen] == [0, 0, 0, 0, 1, 1, 2]


async def test_a_connection_that_idles_long_is_not_used_again() -> None:
    script = Script([answer(Retry_After="61")], [answer()])
    await polled(script, 2)
    assert [seen.link for seen in script.seen] == [0, 1]


async def test_a_failed_poll_raises_and_the_next_is_new() -> None:
    script = Script([answer()], ["rst"], ["rst"], [answer()])
    async with script.running():
        source = await opened(script)
        await source.receive()
        with pytest.raises(ConnectionBroken):
            await source.receive()
        assert len(await source.receive()) == 1
        await source.leave(1001)
    assert [seen.link for seen in script.seen] == [0, 0, 1, 2]


# --- what is asked --------------------------------------------------------------------------------------------------


async def test_each_poll_asks_again() -> None:
    """The position and a fresh token may be part of it."""
    requests = [
        Request(via="poll", url=f"{URL}?after={number}", headers=(("Authorization", Secret(f"Bearer {number}")),))
        for number in range(3)
    ]
    requests.append(Request(via="poll", url="ws://LOCALHOST:80/rpc", method="POST", body=Secret('{"id":1}')))
    script = Script(*[[answer()]] * 4)
    await polled(script, 4, *requests)
    assert [seen.line for seen in script.seen] == [
        *(f"GET /job?after={number} HTTP/1.1" for number in range(3)),
        "POST /rpc HTTP/1.1",
    ]
    assert [seen.headers.get("authorization") for seen in script.seen] == ["Bearer 0", "Bearer 1", "Bearer 2", None]
    assert script.seen[-1].body == b'{"id":1}'


async def test_a_later_request_to_another_origin_is_refused() -> None:
    script = Script([answer(202, Location="http://elsewhere/job")], [answer()])
    async with script.running():
        source = await opened(script, ASKED, Request(via="poll", url="http://elsewhere/job"), ASKED)
        await source.receive()
        with pytest.raises(InvalidArgument, match="another origin than http://localhost:80"):
            await source.receive()
        assert len(await source.receive()) == 1
        await source.leave(1001)
    assert [dial.host for dial in script.network.dials] == ["localhost"]


# --- probe ----------------------------------------------------------------------------------------------------------


async def while_receiving(source: Source, act: Callable[[], object], *, after: float) -> tuple[object, float]:
    """Call `act` while another task receives; returns what that got or raised, and how long it took."""
    result: list[object] = []
    began = anyio.current_time()

    async def receive() -> None:
        try:
            result.append(await source.receive())
        except Exception as error:
            result.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await anyio.sleep(after)
        act()
    return result[0], anyio.current_time() - began


async def test_a_probe_polls_at_once_on_a_new_connection() -> None:
    """The kept connection may lead through a network that is gone."""
    script = Script([answer(200, Retry_After="600")], [answer(200, b"now")], [answer()])
    async with script.running():
        source = await opened(script)
        await source.receive()
        got, took = await while_receiving(source, lambda: source.probe(5), after=30)
        assert isinstance(got, list)
        assert got[0].body == b"now"
        assert took == pytest.approx(30)
        await source.receive()  # waits as usual
        await source.leave(1001)
    assert [seen.link for seen in script.seen] == [0, 1, 1]
    assert waits(script) == pytest.approx([30, 0.25])


async def test_a_probe_while_nobody_receives() -> None:
    script = Script([answer(200, Retry_After="600")], [answer()], [answer(200, Retry_After="600")])
    async with script.running():
        source = await opened(script)
        await source.receive()
        source.probe(9)
        source.probe(5)
        await anyio.sleep(100)
        began = anyio.current_time()
        await source.receive()
        assert anyio.current_time() == began
        await source.leave(1001)


async def test_a_probe_that_is_not_answered() -> None:
    script = Script([answer()], ["hang"], ["hang"])
    async with script.running():
        source = await opened(script)
        await source.receive()
        source.probe(5)
        source.probe(9)  # the shorter one counts
        began = anyio.current_time()
        with pytest.raises(DeadlineExceeded, match="after 5 s waiting for an answer to the poll after a change"):
            await source.receive()
        assert anyio.current_time() - began == pytest.approx(5)
        await source.leave(1001)


async def test_a_probe_shortens_a_poll_that_is_under_way() -> None:
    script = Script([answer()], ["hang"])
    async with script.running():
        source = await opened(script)
        await source.receive()
        got, took = await while_receiving(source, lambda: source.probe(2), after=1.25)
        assert isinstance(got, DeadlineExceeded)
        assert took == pytest.approx(3.25)
        await source.leave(1001)


async def test_a_probe_does_not_lengthen_a_poll() -> None:
    script = Script([answer()], ["hang"])
    async with script.running():
        source = await opened(script)
        await source.receive()
        got, took = await while_receiving(source, lambda: source.probe(60), after=1.25)
        assert isinstance(got, DeadlineExceeded)
        assert took == pytest.approx(10.25)
        await source.leave(1001)


# --- leave ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.1, 1.0], ids=["in a wait", "in a poll"])
async def test_leave_while_another_task_receives(after: float) -> None:
    script = Script([answer()], ["hang"])
    async with script.running():
        source = await opened(script)
        await source.receive()
        async with anyio.create_task_group() as tasks:
            got, took = await while_receiving(source, lambda: tasks.start_soon(source.leave, 1001), after=after)
        assert str(got) == "the connection broke: the poll was left"
        assert took == pytest.approx(after)
        with pytest.raises(ConnectionBroken, match="the poll was left"):
            await source.receive()


@pytest.mark.parametrize("after", [0.1, 1.0], ids=["in a wait", "in a poll"])
async def test_leave_after_the_receiving_task_was_cancelled(after: float) -> None:
    script = Script([answer()], ["hang"])
    async with script.running():
        source = await opened(script)
        await source.receive()
        with anyio.move_on_after(after) as scope:
            await source.receive()
        assert scope.cancelled_caught
        await source.leave(1001)
        await source.leave(1000, wait=3)


async def test_leave_before_the_first_answer_was_taken() -> None:
    script = Script([answer(200, b"a")])
    async with script.running():
        source = await opened(script)
        await source.leave(1001)
        (got,) = await source.receive()
        assert isinstance(got, Answer)
        with pytest.raises(ConnectionBroken):
            await source.receive()
    assert len(script.seen) == 1


async def test_a_cancelled_first_poll_leaves_nothing_open() -> None:
    script = Script(["hang"])
    async with script.running():
        with anyio.move_on_after(1) as scope:
            await opened(script)
    assert scope.cancelled_caught
