# INVARIANT: the same answer, split in any way, gives the same head and body, or a typed error, and nothing else.
"""Fuzz the HTTP exchange, `Retry-After` and the messages' codec; `make fuzz`. The first two bytes choose the cut."""

import contextlib

from towline._exceptions import ConnectionBroken, MalformedMessage, ProtocolViolation
from towline.protocols.wire.codec import Codec, decode_known
from towline.protocols.wire.lenient import UNFIT
from towline.transport import HTTPExchange, parse_retry_after, parse_url

URL = parse_url("https://api.example/x", schemes=("https",))
CODEC = Codec()


def outcome(pieces: list[bytes]) -> object:
    exchange = HTTPExchange("GET", URL)
    exchange.body_end()
    body = b""
    try:
        for piece in [*pieces, b""]:
            if exchange.complete:
                break
            if piece or piece is not pieces[-1]:
                body += b"".join(exchange.receive(piece))
    except (ProtocolViolation, ConnectionBroken) as error:
        return type(error), None if exchange.head is None else exchange.head.status
    assert exchange.head is not None
    parse_retry_after(exchange.head.header(b"retry-after"), 1e9)
    return exchange.head.status, body


def decode_frame(data: bytes) -> None:
    try:
        decode_known(data)
    except UNFIT as error:
        CODEC.decode_unfit(data, error)


def read(data: bytes) -> None:
    for decode in (
        decode_frame,
        CODEC.decode_state,
        CODEC.decode_error,
        lambda raw: CODEC.decode_result("ai_scan", raw),
    ):
        with contextlib.suppress(MalformedMessage):
            decode(data)


def check(data: bytes) -> None:
    place = int.from_bytes(data[:2], "big")
    wire = data[2:]
    if wire:
        whole = outcome([wire])
        if cut := [piece for piece in (wire[:place], wire[place:]) if piece]:
            assert outcome(cut) == whole
        if len(wire) < 300 and place % 4 == 0:
            assert outcome([wire[i : i + 1] for i in range(len(wire))]) == whole
    read(wire)
    parse_retry_after(wire, 1e9)
