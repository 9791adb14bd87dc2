"""No traceback shows a credential, not even one that prints each frame's variables, as crash reporters do."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.abc import ByteStream

import towline.transport
from towline import TowlineError
from towline._secret import Secret
from towline.protocols._shared.requests import bearer
from towline.testing import MemoryLink
from towline.transport import Endpoint, Network, connect_websocket, request
from towline.transport.net._proxy import open_tunnel, parse_proxy

pytestmark = pytest.mark.anyio

OURS = Path(towline.transport.__file__).parent


@pytest.fixture
def anyio_backend(virtual_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return virtual_backend


def shown(error: BaseException) -> Iterator[str]:
    """What a crash reporter would tell of our frames, the causes' too."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    while told is not None:
        yield "".join(told.format_exception_only())
        for frame in told.stack:
            if OURS in Path(frame.filename).parents:
                yield f"{frame.name}: {frame.locals}"
        told = told.__cause__ or told.__context__  # type: ignore[assignment]


class Answering(Network):
    """A server that says one thing and hangs up."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(allow_insecure=True)
        self.answer = answer

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        link = MemoryLink()
        if self.answer:
            await link.server.send(self.answer)
        await link.server.send_eof()
        return link.client


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
@pytest.mark.parametrize("wrong", [{}, {"headers": ("X", "\r\n")}, {"subprotocols": "\n"}])
async def test_the_upgrade(answer: bytes, wrong: dict[str, Any], canary: str) -> None:
    options: dict[str, list[Any]] = {"headers": [*bearer(Secret(canary))], "subprotocols": [Secret(f"bearer.{canary}")]}
    for name, value in wrong.items():
        options[name].append(value)
    with pytest.raises(TowlineError) as caught:
        await connect_websocket("ws://localhost/", network=Answering(answer), **options)
    lines = list(shown(caught.value))
    assert any(line.startswith("connect_websocket: ") for line in lines)
    assert not [line for line in lines if canary in line]


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx"])
@pytest.mark.parametrize("wrong", [[], [("X", "\r\n")]])
async def test_a_call(answer: bytes, wrong: list[tuple[str, str]], canary: str) -> None:
    headers = [*bearer(Secret(canary)), *wrong]
    with pytest.raises(TowlineError) as caught:
        await request("GET", "http://localhost/", headers=headers, network=Answering(answer))
    lines = list(shown(caught.value))
    assert any(line.startswith("request: ") for line in lines)
    assert not [line for line in lines if canary in line]


async def test_what_is_no_secret_is_shown() -> None:
    with pytest.raises(TowlineError) as caught:
        await connect_websocket("ws://localhost/", network=Answering(b""), subprotocols=["chat"])
    assert any("chat" in line for line in shown(caught.value)), "else these tests would see nothing"


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 407 No\r\n\r\n", b"\x05\x02\x01\x01", b"\x05\x02\x01\x00\x05\x05"])
async def test_the_proxy(scheme: str, answer: bytes) -> None:
    stream = await Answering(answer).connect(Endpoint("proxy", 1))
    with pytest.raises(TowlineError) as caught:
        await open_tunnel(stream, parse_proxy(f"{scheme}://user:hunter2@proxy"), "hub.example", 443)
    lines = list(shown(caught.value))
    assert any(line.startswith("open_tunnel: ") for line in lines)
    assert not [line for line in lines if "hunter2" in line or "dXNlcjpodW50ZXIy" in line]
