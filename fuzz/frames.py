# INVARIANT: the same bytes, split in any way, give the same messages within the limits and then the same typed end.
"""Fuzz the open WebSocket; `make fuzz`. The first three bytes choose the cut, compression, and turns."""

from towline._exceptions import ConnectionBroken, ConnectionClosed, MessageTooBig, ProtocolViolation
from towline.transport import Deflate, Limits, Message, WebSocketProtocol

TYPED = (ProtocolViolation, MessageTooBig, ConnectionClosed, ConnectionBroken)


def outcome(pieces: list[bytes], *, deflate: bool, turns: int) -> tuple[list[Message], object]:
    limits = Limits(max_message=1000, max_fragments=8, frames_per_turn=turns)
    extension = Deflate().accepted("permessage-deflate", limits.max_message) if deflate else None
    protocol = WebSocketProtocol(limits=limits, deflate=extension, entropy=lambda size: b"mask" * (size // 4))
    messages: list[Message] = []
    for piece in pieces:
        messages += protocol.receive_data(piece)
        while protocol.has_more:
            messages += protocol.receive_data(b"")
        sent = protocol.data_to_send()
        assert len(sent) <= 17 * (6 + 125)
    protocol.receive_eof()
    end = protocol.end
    assert isinstance(end, TYPED)
    assert end.__cause__ is end.__context__ is None
    for message in messages:
        assert len(message.encode() if isinstance(message, str) else message) <= limits.max_message
    if isinstance(end, ProtocolViolation):
        return messages, (type(end), end.close_code)
    if isinstance(end, ConnectionClosed):
        return messages, (type(end), end.code, end.reason)
    return messages, type(end)


def check(data: bytes) -> None:
    place = int.from_bytes(data[:2], "big")
    flags = data[2] if len(data) > 2 else 0
    wire = data[3:]
    deflate = bool(flags & 1)
    whole = outcome([wire], deflate=deflate, turns=1000)
    cut = outcome([wire[:place], wire[place:]], deflate=deflate, turns=flags >> 1 or 1)
    assert cut == whole or (deflate and both_wrong(cut, whole))
    if len(wire) < 300 and place % 4 == 0:
        cut = outcome([wire[i : i + 1] for i in range(len(wire))], deflate=deflate, turns=1)
        assert cut == whole or (deflate and both_wrong(cut, whole))


def both_wrong(*outcomes: tuple[list[Message], object]) -> bool:
    """Whether the rejected message first inflates past the limit and later fails to inflate.

    zlib reports the first problem in the bytes of one call, and together with an error it returns no earlier output.
    """
    refusals: list[object] = [MessageTooBig, (ProtocolViolation, 1007)]
    return all(messages == outcomes[0][0] and end in refusals for messages, end in outcomes)
