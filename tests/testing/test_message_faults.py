"""Message faults: bytes in, bytes out, whole and byte by byte; and on a real link."""

from collections.abc import Callable

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.frame_protocol import FrameProtocol

from towline.testing import FaultProxy, MessageFault
from towline.testing.proxy._message_faults import MessageTamperer

HEAD = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"


def frame(text: str, *, finished: bool = True) -> bytes:
    return bytes(FrameProtocol(client=False, extensions=[]).send_data(text, fin=finished))


def ping() -> bytes:
    return bytes(FrameProtocol(client=False, extensions=[]).ping(b"p"))


def once(number: int, fault: MessageFault) -> Callable[[int], MessageFault | None]:
    return lambda seen: fault if seen == number else None


@pytest.mark.parametrize("cut", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("fault", "order"),
    [("drop", "acd"), ("duplicate", "abbcd"), ("swap", "acbd"), ("replay", "abacd"), (None, "abcd")],
)
def test_the_second_message(fault: MessageFault, order: str, cut: int) -> None:
    tamperer = MessageTamperer(once(2, fault))
    data = HEAD + b"".join(frame(text) for text in "abcd")
    pieces = [data[at : at + cut] for at in range(0, len(data), cut)]
    out = b"".join(map(tamperer.feed, pieces)) + tamperer.finish()
    assert out == HEAD + b"".join(frame(text) for text in order)


def test_control_frames_and_fragments_are_no_messages() -> None:
    tamperer = MessageTamperer(once(1, "drop"))
    data = HEAD + ping() + frame("x", finished=False) + ping()
    assert tamperer.feed(data) == data
    assert tamperer.feed(frame("first") + frame("second")) == frame("second")


def test_a_swapped_last_message_still_comes_at_the_end() -> None:
    tamperer = MessageTamperer(once(1, "swap"))
    assert tamperer.feed(HEAD + frame("only")) == HEAD
    assert tamperer.finish() == frame("only")


@pytest.mark.parametrize("data", [b"HTTP/1.1 200 OK\r\n\r\n\x81\x01x", b"HTTP/1.1 " + b"\0" * 70_000])
def test_what_is_no_websocket_passes_untouched(data: bytes) -> None:
    tamperer = MessageTamperer(lambda number: "drop")
    assert tamperer.feed(data) + tamperer.feed(b"more") == data + b"more"


def test_a_line_with_tls_passes_as_it_comes() -> None:
    """Its handshake would wait for ever for the end of a head that it does not have."""
    hello = bytes.fromhex("160303007a0200007603038e")  # a TLS record (RFC 8446 section 5.1) begins like this
    tamperer = MessageTamperer(lambda number: "drop")
    assert [tamperer.feed(bytes([one])) for one in hello] == [bytes([one]) for one in hello]


@given(st.lists(st.text(max_size=400) | st.integers(125, 70_000).map("x".__mul__), max_size=6), st.data())
def test_without_a_fault_the_bytes_are_the_same(texts: list[str], data: st.DataObject) -> None:
    whole = HEAD + b"".join(map(frame, texts))
    at = data.draw(st.integers(0, len(whole)))
    tamperer = MessageTamperer(lambda number: None)
    assert tamperer.feed(whole[:at]) + tamperer.feed(whole[at:]) + tamperer.finish() == whole


@pytest.mark.anyio
async def test_on_a_real_link_and_only_once() -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        server = WSConnection(ConnectionType.SERVER)
        async with stream:
            server.receive_data(await stream.receive())
            list(server.events())
            await stream.send(server.send(ws.AcceptConnection()))
            await stream.send(b"".join(server.send(ws.TextMessage(data=text)) for text in "abcd"))
            await stream.send(server.send(ws.CloseConnection(code=1001)))

    async def texts(proxy: FaultProxy) -> str:
        client = WSConnection(ConnectionType.CLIENT)
        got = ""
        async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
            await stream.send(client.send(ws.Request(host="x", target="/")))
            while True:
                client.receive_data(await stream.receive())
                for event in client.events():
                    if isinstance(event, ws.TextMessage):
                        got += event.data
                    elif isinstance(event, ws.CloseConnection):
                        return got

    with anyio.fail_after(20):
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            async with anyio.create_task_group() as group:
                group.start_soon(listener.serve, serve)
                port = listener.extra(anyio.abc.SocketAttribute.local_port)
                async with FaultProxy("127.0.0.1", port) as proxy:
                    proxy.fault_message("duplicate", 2)
                    proxy.fault_message("swap", 3)
                    assert await texts(proxy) == "abbdc"
                    assert await texts(proxy) == "abcd"
                group.cancel_scope.cancel()
