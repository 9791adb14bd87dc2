"""The parsers alone: whatever goes in comes out, and whatever else goes in is refused by name."""

from __future__ import annotations

from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline._exceptions import Damaged, InvalidArgument, UnknownVersion
from towline._secret import Secret
from towline.storage import Cursor, Record
from towline.storage._aead import Cipher, record_cipher
from towline.storage._record import Header, read_header, seal, unseal, with_cursor, with_end, with_token
from towline.storage.keys._keyset import Argon2id, Kdf, Keyset, NoKdf, Scrypt, Stored, parse, spell, unwrap, wrap

KEY_ID = "00112233445566778899aabbccddeeff"
CIPHER = record_cipher(bytes(range(32)))
TAG = bytes(range(16))
NONCE = bytes(12)

texts = st.text(min_size=1, max_size=40)
times = st.integers(0, 2**53 - 1).map(lambda ms: ms / 1000).filter(lambda s: s < 2**53 / 1000)
records = st.builds(
    Record,
    job=texts,
    origin=texts,
    token=st.none() | texts.map(Secret),
    expires=st.none() | times,
    saved=times,
    cursor=st.none() | st.builds(Cursor, texts, st.integers(0, 2**63 - 1)),
    outcome=st.none() | st.just("{}"),
    context=st.dictionaries(texts, st.text(max_size=40), max_size=3).map(MappingProxyType),
)


def sealed(record: Record, generation: int = 1) -> bytes:
    return seal(record, CIPHER, Header(KEY_ID, generation), nonce=NONCE, tag=TAG)


def opened(data: bytes, tag: bytes = TAG) -> tuple[Record, Header]:
    found = unseal(data, {KEY_ID: CIPHER}.get, tag=tag)
    return found.record, found.header


@given(records, st.integers(0, 2**64 - 1))
def test_what_is_sealed_is_what_is_opened(record: Record, generation: int) -> None:
    data = sealed(record, generation)
    assert opened(data) == (record, Header(KEY_ID, generation))
    assert read_header(data) == Header(KEY_ID, generation)
    assert sealed(opened(data)[0], generation) == data  # one spelling only


@given(records, st.data())
def test_no_other_bytes_are_opened(record: Record, data: st.DataObject) -> None:
    good = sealed(record)
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good)))
    bad = good[:start] + data.draw(st.binary(max_size=300)) + good[stop:]
    if bad != good:
        with pytest.raises((Damaged, UnknownVersion)):
            opened(bad)
    with pytest.raises(Damaged):
        opened(good, TAG[::-1])


@given(st.binary(max_size=1000))
def test_no_bytes_at_all_are_taken_for_a_record(data: bytes) -> None:
    with pytest.raises((Damaged, UnknownVersion)):
        opened(data)


@given(st.binary(max_size=700))
def test_no_plaintext_but_the_right_one_is_taken(plain: bytes) -> None:
    clear = b"TWL1\x01\0\0\0" + bytes.fromhex(KEY_ID) + bytes(8) + NONCE
    with pytest.raises(Damaged):
        opened(clear + CIPHER.seal(NONCE, plain + b" " * (-len(plain) % 256), clear + TAG))


salts = st.binary(min_size=16, max_size=16)
kdfs = st.one_of(
    st.just(NoKdf()),
    st.binary(min_size=16, max_size=16).map(lambda raw: Stored(raw.hex())),
    st.builds(Argon2id, st.integers(64, 2**20), st.integers(1, 10), st.integers(1, 8), salts),
    st.builds(Scrypt, st.integers(1, 20).map(lambda power: 2**power), st.integers(1, 8), st.integers(1, 4), salts),
)
WRAPPING = Cipher(bytes(range(32)))


def keyset(kdf: Kdf, roots: int) -> Keyset:
    entries = [
        wrap(bytes(31) + bytes((n,)), WRAPPING, "root", key_id=f"{n:032x}", made=n, source="file", kdf=kdf, nonce=NONCE)
        for n in range(roots)
    ]
    names = wrap(bytes(32), WRAPPING, "name", key_id="f" * 32, made=0, source="file", kdf=kdf, nonce=NONCE)
    return Keyset(v=1, primary=entries[-1].id, keys=tuple(entries), names=names)


@given(kdfs, st.integers(1, 4))
def test_a_keyset_that_is_spelled_is_read(kdf: Kdf, roots: int) -> None:
    made = keyset(kdf, roots)
    data = spell(made)
    found = parse(data)
    assert msgspec.structs.replace(found, sum="") == made
    assert spell(found) == data
    keys = unwrap(found, lambda entry: WRAPPING)
    assert (keys.primary, keys.names, len(keys.ciphers)) == (made.primary, bytes(32), roots)
    assert "names" not in repr(keys)


@given(st.data())
def test_no_other_bytes_are_a_keyset(data: st.DataObject) -> None:
    good = spell(keyset(NoKdf(), 2))
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good)))
    bad = good[:start] + data.draw(st.binary(max_size=60)) + good[stop:]
    if bad != good:
        with pytest.raises((Damaged, UnknownVersion)):
            parse(bad)


@given(records, texts, st.integers(0, 2**63 - 1))
def test_a_cursor_changes_nothing_else_and_never_goes_back(record: Record, epoch: str, seq: int) -> None:
    new = with_cursor(record, Cursor(epoch, seq), now=1)
    old = record.cursor
    if old is not None and old.epoch == epoch and old.seq >= seq:
        assert new is record
    else:
        assert new.cursor == Cursor(epoch, seq)
    assert (new.job, new.origin, new.token, new.outcome) == (record.job, record.origin, record.token, record.outcome)
    again = with_cursor(new, Cursor(epoch, seq), now=2)
    assert again is new


@given(records, st.integers(max_value=-1) | st.integers(min_value=2**63))
def test_a_cursor_that_no_record_can_hold_is_refused(record: Record, seq: int) -> None:
    with pytest.raises(InvalidArgument):
        with_cursor(record, Cursor("e", seq), now=1)


@given(records, records)
def test_a_saved_token_keeps_what_belongs_to_its_origin(old: Record, new: Record) -> None:
    saved = with_token(
        old, job=old.job, origin=new.origin, token=new.token, expires=new.expires, context=None, now=new.saved
    )
    assert (saved.token, saved.origin, saved.expires, saved.saved) == (new.token, new.origin, new.expires, new.saved)
    same = old.origin == new.origin
    assert (saved.cursor, saved.outcome, saved.context) == (
        (old.cursor, old.outcome, old.context) if same else (None, None, {})
    )


@given(records)
def test_the_first_end_stands(record: Record) -> None:
    once = with_end(record, '{"type":"error"}', now=1)
    assert once.outcome == (record.outcome or '{"type":"error"}')
    assert with_end(once, "[]", now=2) is once
