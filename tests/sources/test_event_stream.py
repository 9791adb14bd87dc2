"""The source for events and lines, against scripted bytes in memory under virtual time."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from scripted_wire import Script, Step, access, answer, chunk

from towline._exceptions import (
    ConnectionBroken,
    DeadlineExceeded,
    InvalidArgument,
    MessageTooBig,
    ProtocolViolation,
    TowlineError,
)
from towline._facts import Answer, Closed, Line, Received, Request, ServerEvent, Via
from towline._secret import Secret
from towline.sources import Source, UnusableAnswer, open_source, received_of
from towline.testing import MemoryNetwork, NoAnswer
from towline.transport import Limits

pytestmark = pytest.mark.anyio

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LINES = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


async def never() -> Request:
    raise AssertionError("a stream is not asked again")


async def opened(
    script: Script, via: Via = "events", *, change: dict[str, Any] | None = None, **options: Any
) -> Source:
    asked = Request(via=via, url="http://localhost/stream", **options)
    return await open_source(asked, access(script.network, **(change or {})), never)


async def until_end(source: Source) -> tuple[list[Received], TowlineError]:
    """Everything that comes, and how it ended; the end stays the same."""
    received: list[Received] = []
    try:
        while True:
            received += await source.receive()
    except TowlineError as error:
        with pytest.raises(type(error)):
            await source.receive()
        return received, error
    finally:
        await source.leave(1001)


async def all_of(*steps: Step, via: Via = "events", **options: Any) -> tuple[list[Received], TowlineError]:
    script = Script(steps)
    async with script.running():
        return await until_end(await opened(script, via, **options))


async def refused(*steps: Step, via: Via = "events", **options: Any) -> UnusableAnswer:
    script = Script(steps)
    async with script.running():
        with pytest.raises(UnusableAnswer) as caught:
            await opened(script, via, **options)
    assert received_of(caught.value) == caught.value.answer
    return caught.value


def events(*data: str) -> list[Received]:
    return [ServerEvent("message", text) for text in data]


def lines(*text: str) -> list[Received]:
    return [Line(one) for one in text]


# --- the request ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("via", "accepted"),
    [("events", "text/event-stream"), ("lines", "application/x-ndjson, application/json;q=0.9, text/plain;q=0.5")],
)
async def test_what_is_asked(via: Via, accepted: str) -> None:
    script = Script([answer(404)])
    async with script.running():
        with pytest.raises(UnusableAnswer):
            await opened(script, via)
    (seen,) = script.seen
    assert seen.line == "GET /stream HTTP/1.1"
    assert {name: seen.headers[name] for name in ("accept", "cache-control", "accept-encoding")} == {
        "accept": accepted,
        "cache-control": "no-store",
        "accept-encoding": "identity",
    }


@pytest.mark.parametrize("body", [b'{"id":1}', Secret('{"id":1}'), None])
async def test_a_post_with_the_protocols_own_headers(body: bytes | Secret | None) -> None:
    script = Script([EVENTS, chunk(b"data: a\n\n")])
    async with script.running():
        source = await opened(script, method="POST", body=body, headers=(("accept", "x/y"), ("Last-Event-ID", "é7")))
        assert await source.receive() == events("a")
        await source.leave(1001)
    (seen,) = script.seen
    assert seen.line == "POST /stream HTTP/1.1"
    assert seen.body == (b"" if body is None else b'{"id":1}')
    assert (seen.headers["accept"], seen.headers["last-event-id"]) == ("x/y", "é7")
    assert seen.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("silence", [0, -1, float("nan")])
async def test_a_promise_that_is_no_time(silence: float) -> None:
    script = Script()
    async with script.running():
        with pytest.raises(InvalidArgument, match="silence: must be a number of seconds greater than 0"):
            await opened(script, silence=silence)
    assert script.network.dials == []


async def test_nothing_can_be_sent() -> None:
    script = Script([EVENTS])
    async with script.running():
        source = await opened(script)
        await source.start(())
        with pytest.raises(InvalidArgument, match="opening: only a WebSocket has opening messages"):
            await source.start(["x"])
        with pytest.raises(InvalidArgument, match="send: only a WebSocket takes messages"):
            await source.send("x")
        source.advise(3)
        await source.leave(1001)


# --- answers that are no stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (204, "there is nothing to follow, and 204 asks not to reconnect"),
        (202, "only an answer with the status 200 is a stream"),
        (307, "a redirect is not followed, because the token must not go elsewhere: use the final URL of the stream"),
        (401, "it wants a token, or rejects the one that was sent"),
        (404, "it knows no such job or path"),
        (503, "only an answer with the status 200 is a stream"),
    ],
)
@pytest.mark.parametrize("via", ["events", "lines"])
async def test_another_status(via: Via, status: int, problem: str) -> None:
    body = b"" if status == 204 else b'{"error":1}'
    headers = {"Content_Type": "text/event-stream", "Retry_After": "30", "Location": "http://elsewhere/"}
    error = await refused(answer(status, body, **headers), via=via)
    assert str(error) == f"the server answered HTTP status {status}: {problem}"
    assert (error.answer.status, error.answer.body) == (status, body)
    assert error.answer.headers["location"] == "http://elsewhere/"
    assert error.retry_after == 30


@pytest.mark.parametrize("via", ["events", "lines"])
@pytest.mark.parametrize("named", ["text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml"])
async def test_the_page_of_a_portal(via: Via, named: str) -> None:
    error = await refused(answer(200, b"<html>Log in", Content_Type=named), via=via)
    assert "it is an HTML page and no stream: check the URL, and whether a network's login page answers" in str(error)
    assert error.answer.body == b"<html>Log in"


@pytest.mark.parametrize(
    ("headers", "given"),
    [
        ({"Content_Type": "application/json"}, "application/json"),
        ({}, "missing"),
        ({"Content_Type": "x/\x9b31my" + "z" * 1000}, r"x/\\x9b31myz{93}:"),
    ],
)
async def test_another_content_type(headers: dict[str, str], given: str) -> None:
    """The server's text is escaped and cut: a terminal would obey it."""
    raw = answer(200, b"{}", **headers).decode().encode("latin-1")
    script = Script([raw])
    async with script.running():
        with pytest.raises(UnusableAnswer, match=f"is text/event-stream, and it is {given}"):
            await opened(script)


@pytest.mark.parametrize("named", ["text/event-stream", "Text/Event-Stream; charset=latin-1", " text/event-stream ;x"])
async def test_spellings_of_the_content_type(named: str) -> None:
    received, _ = await all_of(answer(200, "data: é\n\n".encode(), Content_Type=named))
    assert received == events("é")


@pytest.mark.parametrize("named", [{}, {"Content_Type": "application/json"}, {"Content_Type": "text/plain"}])
async def test_lines_of_any_other_type(named: dict[str, str]) -> None:
    received, _ = await all_of(answer(200, b"1\n2\n", **named), via="lines")
    assert received == lines("1", "2")


@pytest.mark.parametrize("via", ["events", "lines"])
async def test_a_compressed_stream(via: Via) -> None:
    """Known with the head already: no byte of the body has to come."""
    head = EVENTS.replace(b"200 OK\r\n", b"200 OK\r\nContent-Encoding: GZIP\r\n")
    error = await refused(head, "hang", via=via)
    assert "the body is compressed" in str(error)
    assert "turn compression off on the server or proxy" in str(error)
    assert (error.answer.status, error.answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("steps", "body", "took"),
    [
        ([b"HTTP/1.1 500 x\r\nContent-Length: 9\r\n\r\nabc", "hang"], b"abc", 1.0),  # waits a second for the rest
        ([b"HTTP/1.1 500 x\r\nContent-Length: 9\r\n\r\nabc", "rst"], b"abc", 0.0),
        ([b"HTTP/1.1 500 x\r\n\r\n", *[b"x" * 60_000] * 5, "hang"], b"x" * 65_536, 0.0),
        ([b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n", 0.1, b"zz\r\n", "hang"], b"", 0.1),
    ],
)
async def test_the_body_of_a_refusal_is_bounded(steps: list[Step], body: bytes, took: float) -> None:
    began = anyio.current_time()
    error = await refused(*steps)
    assert error.answer == Answer(500, error.answer.headers, body)
    assert anyio.current_time() - began == pytest.approx(took)


@pytest.mark.parametrize("steps", [["hang"], [b"HTTP/1.1 200 OK\r\n", "hang"]])
async def test_no_head_in_time(steps: list[Step]) -> None:
    script = Script(steps)
    async with script.running():
        with pytest.raises(DeadlineExceeded):
            await opened(script, change={"connect_deadline": 4.0})
        assert anyio.current_time() - script.seen[0].at == pytest.approx(4)


@pytest.mark.parametrize(
    ("step", "error"), [("fin", ConnectionBroken), ("rst", ConnectionBroken), (b"no\r\n\r\n", ProtocolViolation)]
)
async def test_no_head_at_all(step: Step, error: type[TowlineError]) -> None:
    script = Script([step])
    async with script.running():
        with pytest.raises(error):
            await opened(script)


async def test_a_cancelled_dial_leaves_nothing_open() -> None:
    script = Script(["hang"])
    async with script.running():
        with anyio.move_on_after(1):
            await opened(script)
        assert len(script.links) == 1
    unreachable = MemoryNetwork(lambda link: anyio.sleep_forever())
    unreachable.weather = NoAnswer()
    async with unreachable:
        with anyio.move_on_after(1) as scope:
            await open_source(Request(via="events", url="http://localhost/"), access(unreachable), never)
    assert scope.cancelled_caught


# --- events ---------------------------------------------------------------------------------------------------------


async def test_events_as_they_come() -> None:
    script = Script(
        [EVENTS, 100.0, chunk(b"event: a\nid: 1\ndata: x\n\n"), 100.0, chunk(b"data: y\n\nid\ndata: z\n\n")]
    )
    async with script.running():
        source = await opened(script)
        began = anyio.current_time()
        assert await source.receive() == [ServerEvent("a", "x", "1")]
        assert anyio.current_time() - began == source.last_received - began == pytest.approx(100)
        assert await source.receive() == [ServerEvent("message", "y"), ServerEvent("message", "z", "")]
        assert source.last_received - began == pytest.approx(200)
        await source.leave(1001)


async def test_a_mark_of_byte_order_and_any_cut() -> None:
    wire = EVENTS + chunk(b"\xef\xbb\xbfdata: a\r\n\r\n") + chunk(b"data: b\r\rdata: c\n\n") + LAST
    received, error = await all_of(*(wire[place : place + 1] for place in range(len(wire))))
    assert received == events("a", "b", "c")
    assert received_of(error) == Closed()


@pytest.mark.parametrize("end", [[LAST], ["fin"], ["rst"], [b"zz\r\n"]])
async def test_an_end_in_the_middle_of_an_event(end: list[Step]) -> None:
    """The unfinished event does not count, however the response ends."""
    received, error = await all_of(EVENTS, chunk(b"data: a\n\ndata: b\n"), *end)
    assert received == events("a")
    assert isinstance(error, ProtocolViolation if end == [b"zz\r\n"] else ConnectionBroken)


async def test_an_ordinary_end_is_a_lost_stream() -> None:
    _, error = await all_of(EVENTS, LAST)
    assert str(error) == "the connection broke: the server ended the response"


@pytest.mark.parametrize("via", ["events", "lines"])
async def test_a_line_without_an_end(via: Via) -> None:
    head, ready = (EVENTS, b"data: a\n\n") if via == "events" else (LINES, b"a\n\nb\n")
    endless = [chunk(b"x" * 1000)] * 3
    script = Script([head, chunk(ready), *endless, "hang"])
    async with script.running():
        received, error = await until_end(await opened(script, via, change={"limits": Limits(max_message=2000)}))
    assert received == (events("a") if via == "events" else lines("a", "b"))
    assert isinstance(error, MessageTooBig)
    assert error.limit == 2000


@pytest.mark.parametrize("via", ["events", "lines"])
async def test_what_comes_before_a_too_large_one_counts(via: Via) -> None:
    """Also in the same read; what comes after does not."""
    long = b"x" * 3000
    head, wire, before = EVENTS, b"data: a\n\ndata: b\n\ndata: %s\n\ndata: c\n\n" % long, events("a", "b")
    if via == "lines":
        head, wire, before = LINES, b"a\nb\n%s\nc\n" % long, lines("a", "b")
    script = Script([head + chunk(wire), "hang"])
    async with script.running():
        received, error = await until_end(await opened(script, via, change={"limits": Limits(max_message=2000)}))
    assert received == before
    assert isinstance(error, MessageTooBig)


async def test_an_event_without_an_end() -> None:
    wire = chunk(b"data: a\n\n") + chunk(b"data: 1234567\n" * 300)
    script = Script([EVENTS, wire, "hang"])
    async with script.running():
        received, error = await until_end(await opened(script, change={"limits": Limits(max_message=2000)}))
    assert received == events("a")
    assert isinstance(error, MessageTooBig)


async def test_a_large_stream_is_no_large_message() -> None:
    count = 100
    script = Script([EVENTS, *[chunk(b"data: " + b"x" * 50_000 + b"\n\n")] * count, LAST])
    async with script.running():
        received, _ = await until_end(await opened(script, change={"limits": Limits(max_message=60_000)}))
    assert len(received) == count


@pytest.mark.parametrize(
    ("sent", "retry"),
    [(b"retry: 2500\n", 2.5), (b"retry: 0\n", 0), (b"retry: 99999999999\n", 3600), (b"retry: -1\n", None)],
)
async def test_the_servers_wait_before_a_reconnect(sent: bytes, retry: float | None) -> None:
    script = Script([EVENTS, chunk(sent + b"data: a\n\n"), LAST])
    async with script.running():
        source = await opened(script)
        assert source.retry is None
        assert await source.receive() == events("a")
        assert source.retry == retry
        await until_end(source)
        assert source.retry == retry  # still known after the end


# --- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [b'{"b":2}\n', b'{"b":2}'])
async def test_lines_with_and_without_a_final_newline(last: bytes) -> None:
    received, error = await all_of(LINES, chunk(b'{"a":1}\r\n\n{"'), chunk(b'c":3}\n' + last), LAST, via="lines")
    assert received == lines('{"a":1}', '{"c":3}', '{"b":2}')
    assert received_of(error) == Closed()


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_half_a_line_of_a_broken_response_does_not_count(end: Step) -> None:
    received, _ = await all_of(LINES, chunk(b'{"a":1}\n{"b"'), end, via="lines")
    assert received == lines('{"a":1}')


async def test_lines_ask_for_no_wait() -> None:
    script = Script([LINES])
    async with script.running():
        source = await opened(script, "lines")
        assert source.retry is None
        await source.leave(1001)


# --- silence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("via", ["events", "lines"])
@pytest.mark.parametrize("first", [[], [b": \n"], [b"data: a\n\n"]])
async def test_a_promised_keep_alive_that_does_not_come(via: Via, first: list[bytes]) -> None:
    """Lost after twice the promised interval, counted from the last bytes."""
    script = Script([EVENTS if via == "events" else LINES, 10.0, *map(chunk, first), "hang"])
    async with script.running():
        source = await opened(script, via, silence=15)
        began = anyio.current_time()
        _, error = await until_end(source)
        assert anyio.current_time() - began == pytest.approx(40 if first else 30)
    assert str(error) == "timed out after 30 s waiting for the next keep-alive that the server promised"
    assert received_of(error) is None


@pytest.mark.parametrize(("via", "alive"), [("events", b":\n"), ("lines", b"\n"), ("events", b": half")])
async def test_keep_alives_count_as_life(via: Via, alive: bytes) -> None:
    """A comment, an empty line, and half of one: bytes count, nothing is received."""
    head, last = (EVENTS, b"\n\ndata: a\n\n") if via == "events" else (LINES, b"a\n")
    script = Script([head, *[29.0, chunk(alive)] * 20, chunk(last)])
    async with script.running():
        source = await opened(script, via, silence=15)
        received: Sequence[Received] = ()
        while not received:
            received = await source.receive()
        assert received == (events("a") if via == "events" else lines("a"))
        assert anyio.current_time() - script.seen[0].at == pytest.approx(580)
        await source.leave(1001)


async def test_without_a_promise_silence_is_no_loss() -> None:
    script = Script([EVENTS, 30 * 86_400.0, chunk(b"data: a\n\n")])
    async with script.running():
        source = await opened(script)
        assert await source.receive() == events("a")
        await source.leave(1001)


async def test_a_stream_that_nobody_read_in_time_is_read_first() -> None:
    """A slow consumer stops the reading: what has arrived meanwhile shows that the link lives."""
    script = Script([EVENTS, chunk(b"data: a\n\n"), *[15.0, chunk(b":\n")] * 20, chunk(b"data: b\n\n"), "hang"])
    async with script.running():
        source = await opened(script, silence=15)
        assert await source.receive() == events("a")
        await anyio.sleep(250)
        began = anyio.current_time()
        while not (received := await source.receive()):
            pass
        assert received == events("b")
        await anyio.sleep(250)
        began = anyio.current_time()
        with pytest.raises(DeadlineExceeded, match="after 251 s"):
            await source.receive()
        assert anyio.current_time() - began == pytest.approx(1)
        await source.leave(1001)


# --- probe ----------------------------------------------------------------------------------------------------------


async def probed(
    source: Source, *, after: float, within: float = 5
) -> tuple[list[Received], TowlineError | None, float]:
    """Probe while another task receives, for at most 200 s; returns what it got, its end, and when."""
    got: list[Received] = []
    ended: TowlineError | None = None
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            nonlocal ended
            try:
                while True:
                    got.extend(await source.receive())
            except TowlineError as error:
                ended = error
                tasks.cancel_scope.cancel()

        tasks.start_soon(receive)
        await anyio.sleep(after)
        source.probe(within)
        await anyio.sleep(200)
        tasks.cancel_scope.cancel()
    return got, ended, anyio.current_time() - began


async def test_a_probe_without_a_promise_gives_up_at_once() -> None:
    """Nothing can prove that the link lives: the engine opens a new one with the cursor."""
    script = Script([EVENTS, chunk(b"data: a\n\n"), "hang"])
    async with script.running():
        source = await opened(script)
        got, ended, took = await probed(source, after=50)
        assert got == events("a")
        assert isinstance(ended, DeadlineExceeded)
        assert "a sign of life after a change of the network or a wake" in str(ended)
        assert took == pytest.approx(50)
        await source.leave(1001)


async def test_a_probe_while_nobody_receives() -> None:
    script = Script([EVENTS, chunk(b"data: a\n\n"), "hang"])
    async with script.running():
        source = await opened(script)
        source.probe(5)
        source.probe(5)
        with pytest.raises(DeadlineExceeded, match="a sign of life"):
            await source.receive()
        await source.leave(1001)


async def test_a_probe_waits_for_the_promised_keep_alive() -> None:
    """Never shorter than the promise: the last keep-alive may have come just before."""
    script = Script([EVENTS, *[15.0, chunk(b":\n")] * 30, "hang"])
    async with script.running():
        source = await opened(script, silence=15)
        _, ended, took = await probed(source, after=15.001, within=0.5)
        assert (ended, took) == (None, pytest.approx(215.001))
        await source.leave(1001)


async def test_a_probe_ends_a_link_that_is_silent_now() -> None:
    script = Script([EVENTS, *[15.0, chunk(b":\n")] * 2, "hang"])
    async with script.running():
        source = await opened(script, silence=15)
        _, ended, took = await probed(source, after=31, within=2)
        assert isinstance(ended, DeadlineExceeded)
        assert took == pytest.approx(31 + 15 + 2)
        await source.leave(1001)


async def test_a_probe_does_not_lengthen_the_silence() -> None:
    script = Script([EVENTS, "hang"])
    async with script.running():
        source = await opened(script, silence=15)
        _, ended, took = await probed(source, after=29, within=100)
        assert isinstance(ended, DeadlineExceeded)
        assert took == pytest.approx(30)
        await source.leave(1001)


async def test_a_probe_after_the_end_changes_nothing() -> None:
    script = Script([EVENTS, LAST])
    async with script.running():
        source = await opened(script)
        assert await source.receive() == []
        source.probe(5)
        with pytest.raises(ConnectionBroken, match="the server ended the response"):
            await source.receive()
        await source.leave(1001)


# --- leave ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelled", [True, False])
async def test_leave_while_receiving(cancelled: bool) -> None:
    """From another task, after the receiving one was cancelled as the engine does it, or not."""
    script = Script([EVENTS, "hang"])
    async with script.running():
        source = await opened(script, silence=15)
        ended: list[TowlineError] = []

        async def receive() -> None:
            with pytest.raises(ConnectionBroken) as caught:
                await source.receive()
            ended.append(caught.value)

        async with anyio.create_task_group() as outer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.sleep(1)
                began = anyio.current_time()
                if cancelled:
                    tasks.cancel_scope.cancel()
                outer.start_soon(source.leave, 1001)
        assert anyio.current_time() == began
    assert len(ended) == (0 if cancelled else 1)


async def test_leave_twice_and_in_a_cancelled_task() -> None:
    script = Script([EVENTS, chunk(b"data: a\n\n"), "hang"])
    async with script.running():
        source = await opened(script)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await source.leave(1001)
        await source.leave(1000, wait=5)


async def test_a_cancelled_receive_loses_nothing() -> None:
    script = Script([EVENTS, chunk(b"data: a\n\nda"), 10.0, chunk(b"ta: b\n\n"), "hang"])
    async with script.running():
        source = await opened(script)
        assert await source.receive() == events("a")
        with anyio.move_on_after(5):
            await source.receive()
        assert await source.receive() == events("b")
        await source.leave(1001)
