"""Where requests go and what is shown of them: only the own origins, and no secret off the wire."""

from collections.abc import Callable
from typing import Any

import pytest
from scripted_wire import Script, Step, access, answer, shown

from towline import TowlineError
from towline._exceptions import InvalidArgument
from towline._facts import Request, Via
from towline._secret import Secret
from towline.protocols._shared.requests import bearer
from towline.sources import Source, call, open_source
from towline.sources.access import body_of
from towline.transport import parse_url

WAYS: list[Via] = ["websocket", "events", "lines", "poll", "call"]
WRONG = [
    "https://evil.example/x",
    "https://api.example:8443/x",
    "http://api.example/x",
    "http://api.example:443/x",
    "ws://api.example/x",
    "https://api.example.evil.example/x",
    "https://sub.api.example/x",
    "https://127.0.0.1/x",
]


async def never() -> Request:
    raise AssertionError("no second poll was due")


async def do(asked: Request, script: Script, url: str) -> Any:
    """Make the request, and leave what it opened."""
    reached = access(script.network, url)
    if asked.via == "call":
        return await call(asked, reached, deadline=10, max_body=1000)
    source: Source = await open_source(asked, reached, never)
    try:
        await source.start(asked.opening)
        return await source.receive()
    finally:
        await source.leave(1001)


# --- origins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example/a?b=c",
        "wss://api.example/a?b=c",
        "https://API.example:443/a?b=c",
        "WSS://api.example./a?b=c",
    ],
)
def test_one_origin_in_every_spelling(url: str) -> None:
    reached = access(None, "wss://api.example/ws")
    assert reached.url_of(Request(via="websocket", url=url)).whole.startswith("wss://api.example")
    for via in ("events", "lines", "poll", "call"):
        made = reached.url_of(Request(via=via, url=Secret(url)))
        assert (made.scheme, made.target) == ("https", "/a?b=c")
        assert made.origin in reached.origins


def test_an_unencrypted_origin_is_one_too() -> None:
    reached = access(None, "http://api.example/")
    assert reached.url_of(Request(via="websocket", url="http://api.example/a")).whole == "ws://api.example/a"
    assert reached.url_of(Request(via="poll", url="ws://api.example/a")).whole == "http://api.example/a"


@pytest.mark.parametrize("url", WRONG)
def test_another_origin_is_refused_by_name(url: str) -> None:
    with pytest.raises(
        InvalidArgument, match=r"another origin than https://api\.example:443\. If the server"
    ) as caught:
        access(None, "https://api.example/").url_of(Request(via="poll", url=url))
    assert str(parse_url(url, schemes=("https", "http", "ws"), allow_insecure=True).origin) in str(caught.value)


def test_each_own_origin_is_named() -> None:
    own = frozenset(parse_url(f"https://{host}/", schemes=["https"]).origin for host in ("b.example", "a.example"))
    with pytest.raises(InvalidArgument, match=r"than https://a\.example:443 or https://b\.example:443\."):
        access(None, origins=own).url_of(Request(via="poll", url="https://c.example/"))


@pytest.mark.parametrize("via", WAYS)
@pytest.mark.anyio
async def test_nothing_is_dialled_for_another_origin(via: Via) -> None:
    script = Script()
    async with script.running():
        with pytest.raises(InvalidArgument, match="another origin"):
            await do(Request(via=via, url="http://elsewhere/"), script, "http://localhost/")
    assert script.network.dials == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("via", WAYS)
@pytest.mark.anyio
async def test_a_token_follows_no_redirect(via: Via, status: int, canary: str) -> None:
    script = Script([answer(status, Location="http://elsewhere/")])
    asked = Request(via=via, url="http://localhost/", headers=bearer(Secret(canary)))
    async with script.running():
        if via in ("poll", "call"):
            got = await do(asked, script, "http://localhost/")
            said = got.answer if via == "call" else got[0]
            assert (said.status, said.headers["location"]) == (status, "http://elsewhere/")
        else:
            with pytest.raises(TowlineError, match=f"status {status}"):
                await do(asked, script, "http://localhost/")
    assert [dial.host for dial in script.network.dials] == ["localhost"]
    assert len(script.seen) == 1


# --- requests that cannot be made -----------------------------------------------------------------------------------


WRONG_REQUESTS: list[tuple[str, Any]] = [
    ("method", "GET /\r\nX: y"),
    ("method", ""),
    ("method", None),
    ("method", "GÉT"),
    ("url", "/relative"),
    ("url", None),
    ("url", "http://user:pass@localhost/"),
    ("url", "http://localhost/#x"),
    ("headers", (("X", "\r\n"),)),
    ("headers", (("Host", "elsewhere"),)),
    ("body", Secret("\ud800")),
]


@pytest.mark.parametrize(
    ("via", "named", "value"),
    [
        (via, named, value)
        for named, value in WRONG_REQUESTS
        for via in (WAYS[1:] if named in ("method", "body") else WAYS)  # an upgrade is a GET without a body
    ],
)
@pytest.mark.anyio
async def test_a_wrong_request_is_named(via: Via, named: str, value: Any) -> None:
    script = Script()
    made = {"via": via, "url": "http://localhost/"} | {named: value}
    async with script.running():
        with pytest.raises(InvalidArgument) as caught:
            await do(Request(**made), script, "http://localhost/")
    assert caught.value.name == named
    assert script.network.dials == []


@pytest.mark.anyio
@pytest.mark.parametrize("via", ["call", "sse", None])
async def test_no_way_to_follow(via: Any) -> None:
    with pytest.raises(
        InvalidArgument, match="via: a request to follow a job must name websocket, events, lines or poll"
    ):
        await open_source(Request(via=via, url="http://localhost/"), access(None), never)


@pytest.mark.parametrize(
    ("method", "body", "sent"),
    [("GET", None, None), ("POST", None, b""), ("GET", b"x", b"x"), ("POST", Secret("é"), Secret("é"))],
)
def test_the_body(method: str, body: bytes | Secret | None, sent: bytes | Secret | None) -> None:
    assert body_of(Request(via="call", url="http://localhost/", method=method, body=body)) == sent


# --- secrets --------------------------------------------------------------------------------------------------------

ANSWERS: list[list[Step]] = [
    ["fin"],
    ["rst"],
    ["hang"],
    [b"nonsense\r\n\r\n", "fin"],
    [answer(401)],
    [answer(200, b"<html>", Content_Type="text/html")],
    [answer(200, b"x", Content_Type="text/event-stream", Content_Encoding="gzip")],
    [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\ndata: ", "fin"],
    [b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"],
]


@pytest.mark.parametrize("via", WAYS)
@pytest.mark.parametrize("steps", ANSWERS, ids=range(len(ANSWERS)))
@pytest.mark.anyio
async def test_secrets_are_on_the_wire_only(via: Via, steps: list[Step], canary: str) -> None:
    options: dict[str, Any] = {"subprotocols": (Secret(f"bearer.{canary}"),)} if via == "websocket" else {}
    if via != "websocket":
        options = {"method": "POST", "body": Secret(f'{{"token":"{canary}"}}')}
    url = Secret(f"http://localhost/?token={canary}")
    asked = Request(via=via, url=url, headers=bearer(Secret(canary)), **options)
    script = Script(steps)
    error: TowlineError | None = None
    async with script.running():
        try:
            await do(asked, script, "http://localhost/")
        except TowlineError as caught:
            error = caught
    (seen,) = script.seen
    assert canary in seen.line
    assert canary in seen.headers["authorization"]
    assert canary in (seen.headers["sec-websocket-protocol"] if via == "websocket" else seen.body.decode())
    assert canary not in repr(asked)
    if error is not None:
        lines = list(shown(error))
        assert any(": {" in line for line in lines), "frames must be seen"
        assert not [line for line in lines if canary in line]


BROKEN: list[dict[str, Callable[[str], Any]]] = [
    {"url": lambda secret: Secret(f"http://localhost/?{secret} x")},
    {"url": lambda secret: Secret(f"http://[localhost/{secret}")},
    {"url": lambda secret: Secret(f"http://elsewhere/?{secret}")},
    {"url": lambda secret: Secret(f"http://localhost/?{secret}#")},
    {"headers": lambda secret: (("X", Secret(f"{secret}\n")),)},
    {"method": lambda secret: "", "body": lambda secret: Secret(secret)},
    {"method": lambda secret: "POST", "body": lambda secret: Secret(f"{secret}\ud800")},
]


@pytest.mark.parametrize("via", ["poll", "events", "call"])
@pytest.mark.parametrize("wrong", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.anyio
async def test_a_request_that_cannot_be_made_shows_none(
    via: Via, wrong: dict[str, Callable[[str], Any]], canary: str
) -> None:
    made: dict[str, Any] = {"via": via, "url": "http://localhost/", "headers": bearer(Secret(canary))}
    made |= {name: make(canary) for name, make in wrong.items()}
    with pytest.raises(InvalidArgument) as caught:
        await do(Request(**made), Script(), "http://localhost/")
    assert not [line for line in shown(caught.value) if canary in line]


@pytest.mark.anyio
async def test_what_is_no_secret_is_shown() -> None:
    """Otherwise the tests above would see nothing."""
    script = Script(["fin"])
    asked = Request(via="call", url="http://localhost/", headers=(("X", "plain text"),))
    async with script.running():
        with pytest.raises(TowlineError) as caught:
            await do(asked, script, "http://localhost/")
    assert any("plain text" in line for line in shown(caught.value))
