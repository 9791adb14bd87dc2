"""The parsers alone: whatever goes in comes out, and whatever else goes in is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline._exceptions import Damaged, InvalidArgument, UnknownVersion
from towline._secret import Secret
from towline.storage import Record, RecordKey
from towline.storage._aead import Cipher, job_tag, record_cipher, tag_of
from towline.storage._record import with_cursor, with_end, with_token
from towline.storage._sealed import Header, read_header, seal, unseal
from towline.storage.keys._keyset import Argon2id, Kdf, Keyset, NoKdf, Scrypt, Stored, parse, spell, unwrap, wrap

KEY_ID = "00112233445566778899aabbccddeeff"
CIPHER = record_cipher(bytes(range(32)))
TAG = bytes(range(16))
NONCE = bytes(12)

texts = st.text(min_size=1, max_size=40)
# Beyond, a float of seconds cannot tell milliseconds apart.
times = st.integers(0, 2**42 * 1000).map(lambda ms: ms / 1000)
seqs = st.integers(0, 2**63 - 1)
visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
paths = visible.filter(lambda path: "?" not in path and "#" not in path)
keys = st.builds(
    RecordKey,
    visible.filter(bool),
    st.builds("{}://api.example:{}/{}".format, st.sampled_from(["http", "https"]), st.integers(1, 65535), paths),
    texts,
)


def numbered(epoch: str, seq: int) -> str:
    """A numbered cursor."""
    return json.dumps({"seq": seq, "epoch": epoch})


marks = texts.map(lambda text: json.dumps({"mark": text}))
parameters = (
    st.text(max_size=40)
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(0.0001, 2**53)
    | st.floats(-(2**53), -0.0001)
    | st.sampled_from([0.0, -0.0])
)
records = st.builds(
    Record,
    key=keys,
    token=st.none() | texts.map(Secret),
    expires=st.none() | times,
    saved=times,
    cursor=st.none() | st.builds(numbered, texts, seqs) | marks,
    outcome=st.none() | st.just("{}"),
    parameters=st.dictionaries(texts, parameters, max_size=3).map(MappingProxyType),
    secrets=st.dictionaries(texts, st.text(max_size=40).map(Secret), max_size=3).map(MappingProxyType),
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
    clear = b"TWL2\x01\0\0\0" + bytes.fromhex(KEY_ID) + bytes(8) + NONCE
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
    return Keyset(v=2, primary=entries[-1].id, keys=tuple(entries), names=names)


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


@given(records, texts, seqs, seqs)
def test_a_cursor_changes_nothing_else_and_never_goes_back(record: Record, epoch: str, first: int, second: int) -> None:
    once = with_cursor(record, numbered(epoch, first), now=1)
    twice = with_cursor(once, numbered(epoch, second), now=2)
    reached = max(first, seq_of(record, epoch))
    assert seq_of(twice, epoch) == max(second, reached)
    assert (twice is once) is (second <= reached)
    assert replace(twice, cursor=None, saved=0) == replace(record, cursor=None, saved=0)
    assert with_cursor(twice, numbered(f"{epoch}+", 0), now=3).cursor == numbered(f"{epoch}+", 0)


def seq_of(record: Record, epoch: str) -> int:
    """The number that a record's cursor has reached in `epoch`; -1 for none."""
    found = json.loads(record.cursor or "{}")
    return int(found["seq"]) if found.get("epoch") == epoch else -1


@given(records, marks)
def test_a_mark_replaces_any_cursor(record: Record, mark: str) -> None:
    new = with_cursor(record, mark, now=1)
    assert new.cursor == mark
    assert with_cursor(new, mark, now=2) is new


@given(records, st.integers(max_value=-1) | st.integers(min_value=2**63) | st.floats() | texts)
def test_a_cursor_that_no_record_can_hold_is_refused(record: Record, seq: object) -> None:
    with pytest.raises(InvalidArgument):
        with_cursor(record, json.dumps({"seq": seq, "epoch": "e"}), now=1)


@given(records, records)
def test_a_save_keeps_what_it_does_not_give(old: Record, new: Record) -> None:
    kept = with_token(old, old.key, token=new.token, expires=new.expires, parameters=None, secrets=None, now=new.saved)
    assert kept == replace(old, token=new.token, expires=new.expires, saved=new.saved)
    given = {"parameters": new.parameters, "secrets": new.secrets}
    replaced = with_token(old, old.key, token=None, expires=None, now=new.saved, **given)  # type: ignore[arg-type]
    assert replaced == replace(old, token=None, expires=None, saved=new.saved, **given)  # type: ignore[arg-type]


@given(keys, keys)
def test_each_key_has_its_own_name_and_each_job_its_own_beginning(one: RecordKey, other: RecordKey) -> None:
    first, second = (tag_of(bytes(32), key.protocol, key.address, key.job) for key in (one, other))
    assert (first == second) is (one == other)
    assert (first[:8] == second[:8]) is (one.job == other.job)
    assert job_tag(bytes(32), one.job) == first[:8]


@given(records)
def test_the_first_end_stands(record: Record) -> None:
    once = with_end(record, '{"type":"error"}', now=1)
    assert once.outcome == (record.outcome or '{"type":"error"}')
    assert with_end(once, "[]", now=2) is once
