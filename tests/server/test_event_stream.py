"""A job's events as Server-Sent Events: over real sockets, on both logs, and on both backends."""

import itertools
import json
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from interop.event_stream import Reader, Stream, followed, opened

from towline.server import Hub, HubLimits, HubStorageError, JobContext, JobFailure, Lifetimes, Upload
from towline.server.web._event_stream import read_id
from towline.server.web._watcher import Advice

MakeHub = Callable[..., "ShiftedHub"]
Eventually = Callable[[Callable[[], bool]], None]


class ShiftedHub(Hub):
    """A hub whose clock a test can set forward."""

    ahead = 0.0

    def now(self) -> int:
        return Hub.now() + round(self.ahead * 1000)


async def counting(context: JobContext, upload: Upload) -> dict[str, int]:
    """Count as far as the upload says, and end when the test has put a file into the job's folder."""
    total = int(upload.path.read_text())
    for done in range((context.processed or 0) + 1, total + 1):
        await context.progress(done, total, "ü" * 3)
    while not await anyio.Path(context.directory / "end").exists():  # noqa: ASYNC110 - put there by another thread
        await anyio.sleep(0.005)
    return {"total": total}


async def rushing(context: JobContext, upload: Upload) -> None:
    for done in range(1, int(upload.path.read_text()) + 1):
        await context.progress(done)


async def lengthy(context: JobContext, upload: Upload) -> None:
    """Send more than the buffers of a connection hold. An item is cut to 500 characters, each of 4 bytes here."""
    for done in range(1, int(upload.path.read_text()) + 1):
        await context.progress(done, item="\U0001f40c" * 500, status="\U0001f40c" * 500)
    raise JobFailure("DONE", "that was all")


@pytest.fixture(params=["sqlite", "redis"])
def make_hub(request: pytest.FixtureRequest, tmp_path: Path) -> MakeHub:
    """Make hubs over one store, a test's own: `make_hub(limits=…)`."""
    return hub_maker(request, tmp_path, request.param)


@pytest.fixture
def make_sqlite_hub(request: pytest.FixtureRequest, tmp_path: Path) -> MakeHub:
    """The same where the log makes no difference."""
    return hub_maker(request, tmp_path, "sqlite")


def hub_maker(request: pytest.FixtureRequest, folder: Path, log: str) -> MakeHub:
    store: dict[str, Any] = {"database": folder / "hub.db"}
    if log == "redis":
        store = {"database": request.getfixturevalue("redis_url"), "prefix": uuid.uuid4().hex, "files": folder / "f"}

    def make(**options: Any) -> ShiftedHub:
        hub = ShiftedHub(**store, **({"limits": HubLimits(calls=10**6), "lifetimes": Lifetimes(lease=0.2)} | options))
        for function in (counting, rushing, lengthy):
            hub.job(function.__name__, path=f"/start/{function.__name__}")(function)
        return hub

    return make


@pytest.fixture
def client(make_sqlite_hub: MakeHub, serving: Any) -> Iterator[Any]:
    with serving(make_sqlite_hub()) as client:
        yield client


def start(client: Any, name: str, count: int) -> None:
    answer = client.start(b"%d" % count, f"/start/{name}", content_type="application/octet-stream")
    assert answer.status_code == 202, answer.text


def end_job(hub: Hub, client: Any) -> None:
    (hub.directory(client.job) / "end").touch()


def get(client: Any, path: str = "", **options: Any) -> httpx.Response:
    """A request that is answered at once, because it is refused or the job has ended."""
    return client.http.get(f"/api/jobs/{client.job}/events{path}", **({"headers": client.auth} | options))


# --- replay and live events --------------------------------------------------------------------------------------


def test_a_stream_brings_what_a_socket_brings(make_hub: MakeHub, serving: Any, ready: Any) -> None:
    """The same bytes, and as many of them, while the job runs."""
    hub = make_hub()
    with serving(hub) as client:
        start(client, "counting", 3)
        with opened(client) as stream, client.socket() as other:
            assert stream.response.headers["content-type"] == "text/event-stream"
            assert stream.response.headers["cache-control"] == "no-store"
            assert stream.response.headers["x-accel-buffering"] == "no"
            assert stream.response.headers["x-content-type-options"] == "nosniff"
            assert "content-length" not in stream.response.headers
            ready(other)
            stream.read(lambda stream: stream.seqs == [1, 2, 3, 4])
            end_job(hub, client)
            stream.read()
            texts = [other.recv(timeout=120) for _ in range(6)]
        assert stream.whole
        assert (stream.ack["from"], stream.ack["epoch"]) == (1, stream.events[0]["epoch"])
        assert set(stream.ack) == set(json.loads(texts[0]))
        assert stream.texts == texts[1:]
        assert [event["type"] for event in stream.events] == ["job_started", *["job_progress"] * 3, "job_complete"]


def test_a_stream_resumes_at_every_event(make_hub: MakeHub, serving: Any) -> None:
    with serving(make_hub()) as client:
        start(client, "rushing", 8)
        whole = followed(client)
        assert (whole.seqs, whole.whole) == (list(range(1, 11)), True)
        for after in range(1, 10):
            rest = followed(client, f"{whole.ack['epoch']}:{after}")
            assert (rest.ack["from"], rest.ack["to"]) == (after + 1, 10)
            assert rest.texts == whole.texts[after:]
            assert rest.whole


def test_a_stream_that_is_cut_at_any_byte_loses_and_repeats_nothing(client: Any) -> None:
    """Every byte of the answer for the client's side, and a part of them with connections that are really cut."""
    start(client, "rushing", 1)
    expected = followed(client)
    whole = get(client).content
    rests: dict[str | None, list[str]] = {expected.last_id: []}
    for length in range(len(whole)):
        cut = Reader()
        cut.feed(whole[:length])
        if cut.last_id not in rests:
            rests[cut.last_id] = followed(client, cut.last_id).texts
        assert cut.texts + rests[cut.last_id] == expected.texts
    assert len(rests) == 4
    address = ("127.0.0.1", int(client.url.rpartition(":")[2]))
    auth = f"Authorization: {client.auth['authorization']}\r\n"
    request = f"GET /api/jobs/{client.job}/events HTTP/1.1\r\nHost: x\r\n{auth}\r\n".encode()
    for length in range(0, len(whole), 37):
        cut = Reader()
        with socket.create_connection(address) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave with a reset
            connection.sendall(request)
            cut.feed(receive_body(connection, length))
        assert cut.texts + (followed(client, cut.last_id).texts if cut.events else expected.texts) == expected.texts


def receive_body(connection: socket.socket, length: int) -> bytes:
    """Receive this much of a body in chunks, and what precedes it."""
    with connection.makefile("rb") as file:
        while file.readline().strip():
            pass
        body = b""
        while len(body) < length:
            size = int(file.readline(), 16)
            body += file.read(min(size, length - len(body)))
            if len(body) < length:
                file.readline()
    return body


def test_a_job_that_ended_while_the_client_was_away(make_hub: MakeHub, serving: Any, eventually: Eventually) -> None:
    hub = make_hub()
    with serving(hub) as client:
        start(client, "counting", 3)
        with opened(client) as first:
            first.read(lambda stream: stream.seqs == [1, 2, 3])
        end_job(hub, client)
        eventually(lambda: client.state()["status"] == "complete")
        rest = followed(client, first.last_id)
        assert (rest.ack["from"], rest.ack["to"], rest.seqs, rest.whole) == (4, 5, [4, 5], True)


def test_after_the_last_event_of_the_job_nothing_is_left(client: Any) -> None:
    """An `EventSource` reconnects after every other status."""
    start(client, "rushing", 3)
    end = followed(client)
    answer = get(client, headers=client.auth | {"last-event-id": end.last_id})
    assert (answer.status_code, answer.content, answer.headers["cache-control"]) == (204, b"", "no-store")
    assert followed(client).texts == end.texts


IDS = [
    "{other}:2",
    "{epoch}:1000",
    "{epoch}:999999999999999999",
    "{epoch}:99999999999999999999999",
    "{epoch}:0",
    "{epoch}:-1",
    "{epoch}:02",
    "{epoch}:2.0",
    "{epoch}: 2",
    "{epoch}:2:2",
    "{epoch}:",
    "{epoch}",
    "2",
    ":",
    ":2",
    "{epoch}:²",
    "{epoch}:" + "9" * 5000,
    "e" * 5000 + ":2",
    "\xff\xfe",
    '{{"epoch": "{epoch}", "seq": 2}}',
]


@pytest.mark.parametrize("where", ["header", "query"])
def test_an_id_that_this_log_has_not_given_begins_with_the_first_event(client: Any, where: str) -> None:
    """As the socket does with such a cursor; `from` says so."""
    start(client, "rushing", 3)
    epoch = followed(client).ack["epoch"]
    for form in IDS:
        text = form.format(epoch=epoch, other="0" * 16)
        if where == "header":
            answer = get(client, headers=client.auth | {"last-event-id": text.encode("latin-1")})
        else:
            answer = get(client, params={"lastEventId": text})
        seen = Reader()
        seen.feed(answer.content)
        assert (seen.ack.get("from"), seen.seqs) == (1, [1, 2, 3, 4, 5]), text[:40]


def test_the_header_is_later_than_the_query(client: Any) -> None:
    start(client, "rushing", 3)
    epoch = followed(client).ack["epoch"]
    for header, query, first in (("", "2", 3), ("3", "2", 4), ("3", "", 4)):
        headers = client.auth | {"last-event-id": header and f"{epoch}:{header}"}
        seen = Reader()
        seen.feed(get(client, headers=headers, params={"lastEventId": query and f"{epoch}:{query}"}).content)
        assert seen.seqs == list(range(first, 6))


def test_a_thousand_events(make_hub: MakeHub, serving: Any) -> None:
    """Two that follow from the beginning, and one that reconnects every hundred events."""
    with serving(make_hub()) as client:
        start(client, "rushing", 998)
        with opened(client) as one, opened(client) as two:
            seen: list[str] = []
            last_id: str | None = None
            while len(seen) < 1000:
                with opened(client, last_id) as stream:
                    stream.read(lambda stream: len(stream.events) >= 100)
                seen += stream.texts
                last_id = stream.last_id
            one.read()
            two.read()
        assert one.seqs == list(range(1, 1001))
        assert one.texts == two.texts == seen
        assert one.whole
        assert two.whole


def test_a_silent_job_has_comments(make_sqlite_hub: MakeHub, serving: Any) -> None:
    hub = make_sqlite_hub(limits=HubLimits(comment_every=0.05))
    with serving(hub) as client:
        start(client, "counting", 1)
        with opened(client) as stream:
            stream.read(lambda stream: stream.comments >= 3)
            assert stream.seqs == [1, 2]
            end_job(hub, client)
            stream.read()
        assert stream.seqs == [1, 2, 3]
    assert HubLimits().comment_every == 15


def test_a_stream_at_another_hub_of_the_same_log(request: pytest.FixtureRequest, tmp_path: Path, serving: Any) -> None:
    """It brings the events while they happen, and goes on at the first hub."""
    make_hub = hub_maker(request, tmp_path, "redis")
    one, two = (make_hub(lifetimes=Lifetimes()) for _ in range(2))  # a lease so long that the other hub never runs it
    with serving(one) as client, serving(two) as other:
        start(client, "counting", 3)
        other.job, other.token = client.job, client.token
        with opened(other) as there:
            there.read(lambda stream: stream.seqs == [1, 2, 3, 4])
            with opened(client, there.last_id) as here:
                end_job(one, client)
                assert here.read().seqs == there.read().seqs[4:] == [5]
        assert here.texts == there.texts[4:]


# --- the hub stops, the client leaves ----------------------------------------------------------------------------


def test_a_hub_that_stops_says_when_to_come_back(make_hub: MakeHub, serving: Any, client_of: Any) -> None:
    """And the next hub on the same store continues after the last event."""
    with ExitStack() as stack:
        with serving(make_hub()) as client:
            start(client, "counting", 3)
            [stopped] = open_streams(stack, client, client_of, 1)
        stopped.read()
    usual, advice = stopped.retries
    assert stopped.whole
    assert 1000 <= usual <= 3000
    assert 1000 <= advice <= 2000
    hub = make_hub()
    job, token = client.job, client.token
    with serving(hub) as client:
        client.job, client.token = job, token
        with opened(client, stopped.last_id) as rest:
            end_job(hub, client)
            rest.read()
    assert (rest.ack["from"], rest.seqs, rest.events[-1]["type"]) == (5, [5], "job_complete")
    assert 1000 <= rest.retries[0] <= 3000


def test_a_hub_with_many_streams_spreads_them(make_sqlite_hub: MakeHub, serving: Any, client_of: Any) -> None:
    with ExitStack() as stack:
        with serving(make_sqlite_hub(accept_rate=0.01)) as client:
            start(client, "counting", 3)
            streams = open_streams(stack, client, client_of, 10)
        advice = [stream.read().retries[-1] for stream in streams]
    assert all(1000 <= wait <= 1_001_000 for wait in advice)
    assert max(advice) - min(advice) > 1000  # 10 of 1,000,000 ms so close together: about 1 in 10^26


def open_streams(stack: ExitStack, client: Any, client_of: Any, count: int) -> list[Stream]:
    """Open streams that outlive the hub, and read the four events there are."""
    other = stack.enter_context(client_of(client.url))
    other.job, other.token = client.job, client.token
    streams = [stack.enter_context(opened(other)) for _ in range(count)]
    return [stream.read(lambda stream: stream.seqs == [1, 2, 3, 4]) for stream in streams]


def test_advice_is_drawn_from_its_range() -> None:
    drawn = [Advice(1, 3).draw() for _ in range(1000)]
    assert 1 <= min(drawn) < 1.5
    assert 3.5 < max(drawn) <= 4
    assert json.loads(Advice(1, 3.04).reason()) == {"retry_in": 1, "spread": 3.0}


def test_a_hub_that_is_killed(hub_process: Any) -> None:
    """The stream has no end, so its client knows that it was cut."""
    hub = hub_process(row_delay=0.005)
    client = hub.start()
    client.start(b"title,author\n" + b"Book,Somebody\n" * 100)
    texts: list[str] = []
    last_id: str | None = None
    for stop in (20, 50, 80):
        with opened(client, last_id) as stream:
            stream.read(lambda stream, stop=stop: stream.seqs[-1:] >= [stop])
            hub.kill()
            assert not stream.read().whole
        texts += stream.texts
        last_id = stream.last_id
        hub.start()
    rest = followed(client, last_id)
    assert rest.whole
    assert texts + rest.texts == followed(client).texts
    assert rest.events[-1]["type"] == "job_complete"


def test_a_client_that_goes_away_is_noticed(make_hub: MakeHub, serving: Any, eventually: Eventually) -> None:
    hub = make_hub(limits=HubLimits(watchers=1))
    with serving(hub) as client:
        start(client, "counting", 3)
        with opened(client) as stream:
            stream.read(lambda stream: stream.seqs == [1, 2, 3, 4])
            assert hub.statistics().streams == 1
        eventually(lambda: hub.statistics().streams == 0)
        with opened(client) as stream:  # its place is free
            end_job(hub, client)
            stream.read()
    assert (hub.statistics().streams_opened, hub.statistics().closes) == (2, {1000: 1})


def test_a_slow_reader_is_let_go_and_finds_everything(make_hub: MakeHub, serving: Any, eventually: Eventually) -> None:
    hub = make_hub(limits=HubLimits(send_wait=0.3))
    with serving(hub) as client:
        start(client, "lengthy", 4000)
        eventually(lambda: client.state()["status"] == "failed")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(client.url.rpartition(":")[2])))
            auth = f"Authorization: {client.auth['authorization']}\r\n"
            # HTTP/1.0 has no chunks, so all that follows the headers is the body.
            connection.sendall(f"GET /api/jobs/{client.job}/events HTTP/1.0\r\nHost: x\r\n{auth}\r\n".encode())
            eventually(lambda: hub.statistics().closes.get(1013) == 1)
            eventually(lambda: hub.statistics().streams == 0)
            slow = Reader()
            received = b""
            with suppress(ConnectionResetError):  # on Linux the system may have ended the connection by now
                while data := connection.recv(65536):
                    received += data
            slow.feed(received.partition(b"\r\n\r\n")[2])
        assert 0 < len(slow.events) < 4000
        rest = followed(client, slow.last_id)
        assert slow.seqs + rest.seqs == list(range(1, 4003))
        assert rest.whole


def test_a_log_that_fails_ends_the_stream_with_advice(make_sqlite_hub: MakeHub, serving: Any) -> None:
    hub = make_sqlite_hub(limits=HubLimits(comment_every=0.05))

    async def broken(*arguments: Any) -> Any:
        raise HubStorageError("the disk is full")

    with serving(hub) as client:
        start(client, "counting", 3)
        with opened(client) as stream:
            stream.read(lambda stream: stream.seqs == [1, 2, 3, 4])
            hub.log.read = broken  # type: ignore[method-assign]
            stream.read()
        assert stream.whole
        assert 2000 <= stream.retries[-1] <= 4000
        assert hub.statistics().closes == {1013: 1}
        del hub.log.read


# --- who may, and how --------------------------------------------------------------------------------------------


def test_refusals_are_those_of_the_other_calls(client: Any) -> None:
    start(client, "rushing", 3)
    for options in ({"headers": {}}, {"headers": {"authorization": "Bearer nonsense"}}):
        answer = get(client, **options)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "unauthorized"
    assert get(client, params={"token": client.token}, headers={}).status_code == 401
    token = client.auth
    start(client, "rushing", 3)
    assert get(client, headers=token).status_code == 401  # it is that of another job
    client.job = "nope"
    assert get(client, headers={}).status_code == 401
    assert get(client).status_code == 404


def test_a_token_in_the_query_where_it_is_allowed(make_sqlite_hub: MakeHub, serving: Any) -> None:
    with serving(make_sqlite_hub(token_in_query=True)) as client:
        start(client, "rushing", 3)
        assert get(client, params={"token": "x"}, headers={}).status_code == 401
        seen = Reader()
        seen.feed(get(client, params={"token": client.token}, headers={}).content)
        assert seen.seqs == [1, 2, 3, 4, 5]
        assert get(client, params={"token": client.token}, headers={"authorization": "Bearer x"}).status_code == 401


def test_a_token_that_is_refreshed_and_one_that_ran_out(make_hub: MakeHub, serving: Any) -> None:
    """A stream that is open stays, as a socket does."""
    hub = make_hub(lifetimes=Lifetimes(token=3600, grace=60, lease=0.2))
    with serving(hub) as client:
        start(client, "counting", 3)
        old = client.auth
        with opened(client) as stream:
            refreshed = client.http.post("/api/token/refresh", json={"jobId": client.job, "oldToken": client.token})
            client.token = refreshed.json()["token"]
            with opened(client) as second:
                second.read(lambda stream: stream.seqs == [1, 2, 3, 4])
            hub.ahead = 70  # the new token was used, so the old one's grace is over
            assert get(client, headers=old).status_code == 401
            hub.ahead = 3700
            assert get(client).status_code == 401
            end_job(hub, client)
            assert stream.read().seqs == [1, 2, 3, 4, 5]


def test_a_job_that_is_no_longer_kept(make_hub: MakeHub, serving: Any, eventually: Eventually) -> None:
    hub = make_hub(lifetimes=Lifetimes(result=0.2, lease=0.2))
    with serving(hub) as client:
        start(client, "rushing", 3)
        path = f"/api/job-state/{client.job}"
        eventually(lambda: client.http.get(path, headers=client.auth).status_code == 410)
        answer = get(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "gone")


def test_a_job_that_is_removed_under_a_stream(make_sqlite_hub: MakeHub, serving: Any, eventually: Eventually) -> None:
    hub = make_sqlite_hub(lifetimes=Lifetimes(result=0.2, lease=0.2))
    held = threading.Event()

    async def wait_for_test(*arguments: Any) -> Any:
        while not held.is_set():  # noqa: ASYNC110 - set from another thread
            await anyio.sleep(0.005)
        return []

    with serving(hub) as client:
        start(client, "counting", 3)
        with opened(client) as stream:
            stream.read(lambda stream: stream.seqs == [1, 2, 3, 4])
            hub.log.read = wait_for_test  # type: ignore[method-assign]
            end_job(hub, client)
            stream.read()
            held.set()
            del hub.log.read
        assert (stream.whole, stream.seqs) == (True, [1, 2, 3, 4])
        assert get(client).status_code == 410
    assert hub.statistics().closes == {1001: 1}


def test_sockets_and_streams_share_their_limits(make_sqlite_hub: MakeHub, serving: Any) -> None:
    hub = make_sqlite_hub(limits=HubLimits(watchers=1, sockets=2))
    with serving(hub) as client:
        start(client, "counting", 3)
        with client.socket():
            refused = get(client)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
            assert refused.json()["error"]["code"] == "too_many_watchers"
            start(client, "counting", 3)
            with opened(client):
                path = f"/ws/progress?jobId={client.job}"
                assert client.refusal(path, additional_headers=client.auth).status_code == 429
                start(client, "counting", 3)
                refused = get(client)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")


def test_streams_have_the_rate_of_the_calls(make_sqlite_hub: MakeHub, serving: Any) -> None:
    with serving(make_sqlite_hub(limits=HubLimits(calls=5))) as client:
        start(client, "rushing", 3)
        refused = next(answer for answer in (get(client) for _ in itertools.count()) if answer.status_code != 200)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "12")


def test_a_stream_that_comes_while_the_hub_stops(make_sqlite_hub: MakeHub, serving: Any) -> None:
    hub = make_sqlite_hub()
    with serving(hub) as client:
        start(client, "counting", 3)
        find = hub.log.token

        async def find_slowly(digest: bytes) -> Any:
            await hub.drain()
            return await find(digest)

        hub.log.token = find_slowly  # type: ignore[method-assign]
        for _ in range(2):
            refused = get(client)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_other_methods(client: Any, eventually: Eventually) -> None:
    start(client, "counting", 3)
    path = f"/api/jobs/{client.job}/events"
    head = client.http.head(path, headers=client.auth)  # it ends, although the job does not
    assert (head.status_code, head.headers["content-type"], head.content) == (200, "text/event-stream", b"")
    assert client.http.head(path).status_code == 401
    for method in ("PUT", "DELETE", "OPTIONS"):  # POST is a worker's report
        answer = client.http.request(method, path, headers=client.auth)
        assert answer.status_code == 405
        assert "GET" in answer.headers["allow"]


def test_pages_of_other_origins(make_sqlite_hub: MakeHub, serving: Any) -> None:
    app = "https://app.example"
    with serving(make_sqlite_hub(origins=[app])) as client:
        start(client, "rushing", 3)
        refused = get(client, headers=client.auth | {"origin": "https://evil.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "foreign_origin")
        for origin in (client.url, app):
            assert get(client, headers=client.auth | {"origin": origin}).status_code == 200
        assert get(client, headers=client.auth | {"origin": app}).headers["access-control-allow-origin"] == app
        asked = {
            "access-control-request-method": "GET",
            "access-control-request-headers": "authorization,last-event-id",
        }
        assert client.http.options(f"/api/jobs/{client.job}/events", headers=asked | {"origin": app}).status_code == 200


def test_the_numbers_count_streams(make_sqlite_hub: MakeHub, serving: Any) -> None:
    hub = make_sqlite_hub(metrics=True)
    with serving(hub) as client:
        start(client, "counting", 1)
        with opened(client) as stream:
            stream.read(lambda stream: stream.seqs == [1, 2])
            lines = client.http.get("/metrics").text.splitlines()
            assert {"towline_streams 1.0", "towline_streams_opened_total 1.0", "towline_sockets 0.0"} <= set(lines)
            end_job(hub, client)
            stream.read()
    now = hub.statistics()
    assert (now.streams, now.streams_opened, now.sockets_opened, now.closes) == (0, 1, 0, {1000: 1})
    assert now.frames_sent == 1 + 1 + 3  # `retry:`, the acknowledgement, the events


def test_what_an_id_may_be() -> None:
    found = read_id("5f2c:17")
    assert (found.epoch, found.seq) == ("5f2c", 17)
    for text in (None, "", "5f2c", "5f2c:0"):
        assert read_id(text).epoch is None


# --- servers of all kinds, on both backends ----------------------------------------------------------------------


class Server:
    """What a server gives an application, one stream of the job; what it sends can fail or wait."""

    def __init__(self, job: str, token: str) -> None:
        self.scope = {
            "type": "http",
            "method": "GET",
            "path": f"/api/jobs/{job}/events",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode())],
        }
        self.gone = anyio.Event()
        self.stuck = anyio.Event()
        self.sent: list[dict[str, Any]] = []
        self.fail_at: int | None = None
        self.wait_at: int | None = None

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if len(self.sent) == self.fail_at:
            raise OSError("the client has gone")
        self.sent.append(message)
        if len(self.sent) - 1 == self.wait_at:
            self.wait_at = None
            self.stuck.set()
            await anyio.sleep_forever()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def begun(hub: Hub, count: int) -> Server:
    started = await hub.start("counting", b"%d" % count)
    with hub.log.subscribe(started.job_id) as bell:
        while len(await hub.log.read(started.job_id, 0, 99)) < count + 1:
            await bell.wait_ring()
    return Server(started.job_id, started.token.reveal())


@pytest.mark.anyio
@pytest.mark.parametrize("fail_at", range(5))
async def test_a_client_that_is_gone_when_something_is_sent(make_sqlite_hub: MakeHub, fail_at: int) -> None:
    """Some servers raise `OSError` then, at the headers or at any block."""
    async with make_sqlite_hub() as hub:
        server = await begun(hub, 3)
        server.fail_at = fail_at
        with anyio.fail_after(20):
            await hub(server.scope, server.receive, server.send)
        assert len(server.sent) == fail_at
        assert (hub.statistics().streams, hub.statistics().closes) == (0, {})


@pytest.mark.anyio
@pytest.mark.parametrize("wait_at", [1, 2, 3])
async def test_no_advice_follows_half_a_block(make_sqlite_hub: MakeHub, wait_at: int) -> None:
    """A server may have sent a part of it: what follows would be read as the rest."""
    hub = make_sqlite_hub()
    async with hub:
        server = await begun(hub, 3)
        server.wait_at = wait_at
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub, server.scope, server.receive, server.send)
            await server.stuck.wait()
            await hub.drain()
    assert server.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert server.body.count(b"retry:") == 1


@pytest.mark.anyio
async def test_a_drained_stream_ends_with_advice(make_sqlite_hub: MakeHub) -> None:
    hub = make_sqlite_hub()
    async with hub:
        server = await begun(hub, 3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub, server.scope, server.receive, server.send)
            while server.body.count(b"data:") < 5:  # noqa: ASYNC110 - the hub sends it
                await anyio.sleep(0.005)
            await hub.drain()
    assert server.sent[-1]["body"].startswith(b"retry: ")
    assert server.sent[-1]["body"].endswith(b"\n\n")
    assert not server.sent[-1]["more_body"]


@pytest.mark.anyio
async def test_a_client_that_takes_nothing(make_sqlite_hub: MakeHub) -> None:
    """The answer is left unfinished where even its end is not taken, and the server cuts the connection."""
    async with make_sqlite_hub(limits=HubLimits(send_wait=0.05)) as hub:
        server = await begun(hub, 3)
        server.wait_at = 3
        with anyio.fail_after(20):
            await hub(server.scope, server.receive, server.send)
        assert (hub.statistics().streams, hub.statistics().closes) == (0, {1013: 1})


@pytest.mark.anyio
async def test_a_client_that_leaves_in_silence(make_sqlite_hub: MakeHub) -> None:
    async with make_sqlite_hub() as hub:
        server = await begun(hub, 3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub, server.scope, server.receive, server.send)
            while server.body.count(b"data:") < 5:  # noqa: ASYNC110 - the hub sends it
                await anyio.sleep(0.005)
            server.gone.set()
        assert server.sent[-1]["more_body"]
        assert hub.statistics().streams == 0
        with suppress(FileNotFoundError):
            (hub.directory(server.scope["path"].split("/")[3]) / "end").touch()
