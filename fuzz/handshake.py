# INVARIANT: any bytes, split in any way, give one of three answers or a typed error, within the limits.
"""Fuzz the opening handshake; `make fuzz`. The first two bytes choose where the rest is cut."""

from base64 import b64encode

from towline._exceptions import ConnectionBroken, ProtocolViolation
from towline.transport import Accepted, ClientHandshake, Deflate, Limits, Refused, parse_url

KEY = b64encode(b"k" * 16)
LIMITS = Limits(max_response_head=4096, max_rejection_body=1024)
URL = parse_url("wss://api.example/ws")


def outcome(pieces: list[bytes]) -> object:
    handshake = ClientHandshake(
        URL, subprotocols=("a", "b"), extensions=Deflate().offer, limits=LIMITS, entropy=lambda size: b"k" * size
    )
    try:
        for index, piece in enumerate(pieces):
            answer = handshake.receive(piece)
            if isinstance(answer, Accepted):
                if answer.extensions:
                    Deflate().accepted(answer.extensions, 1000)
                rest = b"".join(pieces[index + 1 :])
                return answer.subprotocol, answer.extensions, answer.trailing + rest
            if isinstance(answer, Refused):
                assert len(answer.body) <= LIMITS.max_rejection_body
                assert not 100 <= answer.status < 200
                return answer
        return handshake.receive_eof()
    except (ProtocolViolation, ConnectionBroken) as error:
        return type(error)


def check(data: bytes) -> None:
    place = int.from_bytes(data[:2], "big")
    wire = data[2:]
    whole = outcome([wire])
    assert outcome([wire[:place], wire[place:]]) == whole
    if len(wire) < 300 and place % 4 == 0:
        assert outcome([wire[i : i + 1] for i in range(len(wire))]) == whole
