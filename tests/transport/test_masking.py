"""Our frames are what wsproto reads, with the extra `speed` and without."""

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage

from towline.transport.websocket import _masking
from towline.transport.websocket._masking import encode_frame


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_our_frames_are_what_wsproto_reads(payload: bytes, mask: bytes) -> None:
    server = Connection(ConnectionType.SERVER)
    server.receive_data(encode_frame(0x82, payload, mask))
    (event,) = server.events()
    assert isinstance(event, BytesMessage)
    assert bytes(event.data) == payload
    assert event.message_finished


@pytest.mark.parametrize("extra", [True, False], ids=["bitarray", "no-extra"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 2047, 2048, 2051, 65535, 65536, 65537, (1 << 20) + 6, 16 << 20])
def test_our_frames_of_each_length_form(size: int, extra: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _masking._bits.cache_clear()
    if not extra:
        monkeypatch.setitem(sys.modules, "bitarray", None)
    payload = random.Random(size).randbytes(size)
    wire = encode_frame(0x82, payload, b"\x01\x02\x83\x04")
    assert (_masking._bits() is not None) is extra
    server = Connection(ConnectionType.SERVER)
    server.receive_data(wire)
    assert b"".join(bytes(event.data) for event in server.events() if isinstance(event, BytesMessage)) == payload
    _masking._bits.cache_clear()
