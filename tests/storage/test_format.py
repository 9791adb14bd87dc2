"""docs/format.md, written a second time: a reader and a writer that share nothing with the store's own.

The store opens what this writer makes and the vectors of docs/format-vectors.json; this reader opens what the store
writes; and the store refuses each entry of the MUST-reject list. Run as a program, it prints the vectors anew.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from towline._exceptions import (
    Damaged,
    KeyUnavailable,
    RecordMismatch,
    TokenStoreError,
    UnknownVersion,
    UnsafePermissions,
    WrongKey,
)
from towline._secret import Secret
from towline.storage import CallerKey, Cursor, KeyProvider, PassphraseKey, TokenStore

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
ORIGIN = "https://api.example:443"
WRAPPING = hashlib.sha256(b"the wrapping key of the vectors").digest()
PASSPHRASE = "correct horse, café"
JSON = dict[str, Any]


# --- the format, by its document ---------------------------------------------------------------------------------


def canonical(value: object) -> bytes:
    """Canonical JSON of the document; members are given in its order."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def fixed(label: str, size: int) -> bytes:
    """What would be random, so that vectors can be made again."""
    return hashlib.shake_128(label.encode()).digest(size)


def derive(kdf: JSON) -> bytes:
    """The wrapping key of an entry."""
    if kdf["name"] == "none":
        return WRAPPING
    salt = base64.b64decode(kdf["salt"])
    if kdf["name"] == "argon2id":
        costs = {"iterations": kdf["t"], "lanes": kdf["p"], "memory_cost": kdf["m"]}
        return Argon2id(salt=salt, length=32, **costs).derive(PASSPHRASE.encode())
    return Scrypt(salt=salt, length=32, n=kdf["n"], r=kdf["r"], p=kdf["p"]).derive(PASSPHRASE.encode())


def entry(label: str, role: str, kdf: JSON, source: str) -> JSON:
    """A wrapped key."""
    head = {"id": fixed(f"{label} id", 16).hex(), "made": 1_700_000_000_000, "source": source, "kdf": kdf}
    nonce = fixed(f"{label} nonce", 12)
    sealed = AESGCM(derive(kdf)).encrypt(nonce, fixed(label, 32), f"towline {role} key\0".encode() + canonical(head))
    return {**head, "wrapped": base64.b64encode(nonce + sealed).decode()}


def unwrapped(found: JSON, role: str) -> bytes:
    """The key of an entry."""
    head = {name: found[name] for name in ("id", "made", "source", "kdf")}
    wrapped = base64.b64decode(found["wrapped"])
    associated = f"towline {role} key\0".encode() + canonical(head)
    return AESGCM(derive(found["kdf"])).decrypt(wrapped[:12], wrapped[12:], associated)


def summed(keyset: JSON) -> bytes:
    """The file, with its sum put right."""
    return canonical({**keyset, "sum": hashlib.sha256(canonical({**keyset, "sum": ""})).hexdigest()})


def keyset(kdf: JSON | None = None, source: str = "caller", keys: tuple[str, ...] = ("root 1",)) -> JSON:
    """A keyset whose last key is the primary."""
    kdf = kdf or {"name": "none"}
    entries = [entry(label, "root", kdf, source) for label in keys]
    return {"v": 1, "primary": entries[-1]["id"], "keys": entries, "names": entry("names", "name", kdf, source)}


def plaintext(job: str, /, **more: object) -> JSON:
    """What a record says."""
    said: JSON = {"job": job, "origin": ORIGIN, "token": f"token of {job}", "kind": "live", "expires": None}
    said |= {"saved": 1_700_000_000_123, "cursor": None, "outcome": None, "context": {}}
    return {**said, **more}


def padded(text: bytes) -> bytes:
    """Spaces up to a multiple of 256."""
    return text + b" " * (-len(text) % 256)


def tag_of(job: str) -> bytes:
    """The name of a job's file, as bytes."""
    return hmac.new(fixed("names", 32), job.encode(), "sha256").digest()[:16]


def record(
    job: str,
    plain: bytes | None = None,
    *,
    key: str = "root 1",
    magic: bytes = b"TWL1\x01\0\0\0",
    generation: int = 1,
    tag: bytes | None = None,
) -> bytes:
    """A sealed record."""
    nonce = fixed(f"{job} nonce", 12)
    head = magic + fixed(f"{key} id", 16) + generation.to_bytes(8, "big") + nonce
    cipher = AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=b"towline record").derive(fixed(key, 32)))
    plain = padded(canonical(plaintext(job))) if plain is None else plain
    return head + cipher.encrypt(nonce, plain, head + (tag or tag_of(job)))


def opened(folder: Path, job: str) -> tuple[bytes, JSON]:
    """Header and plaintext of a job's record, read by the document alone."""
    found = json.loads((folder / "keyset.json").read_bytes())
    assert (folder / "keyset.json").read_bytes() == summed({k: v for k, v in found.items() if k != "sum"})
    names = unwrapped(found["names"], "name")
    tag = hmac.new(names, job.encode(), "sha256").digest()[:16]
    data = (folder / f"{tag.hex()}.tok").read_bytes()
    assert (data[:8], (len(data) - 60) % 256) == (b"TWL1\x01\0\0\0", 0)
    root = next(unwrapped(one, "root") for one in found["keys"] if one["id"] == data[8:24].hex())
    cipher = AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=b"towline record").derive(root))
    plain = cipher.decrypt(data[32:44], data[44:], data[:44] + tag)
    said = json.loads(plain)
    assert padded(canonical(said)) == plain
    assert isinstance(said, dict)
    return data[:44], said


def put(folder: Path, keys: bytes | None, *records: tuple[bytes, bytes]) -> None:
    """Make a store of these files."""
    folder.mkdir(0o700, exist_ok=True)
    files = {f"{tag.hex()}.tok": data for tag, data in records}
    if keys is not None:
        files["keyset.json"] = keys
    for name, data in files.items():
        (folder / name).touch(0o600)
        (folder / name).write_bytes(data)


# --- both ways ---------------------------------------------------------------------------------------------------


async def test_the_document_reads_what_the_store_writes(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(WRAPPING), now=lambda: 1_700_000_000.1231)
    context = {"z": "</é\u2028\x7f", "a": '"\\\n\x01'}
    await store.save("jöb/../1", "tok\n€n", ORIGIN, 1_700_000_060.9991, context=context)
    await store.save_cursor("jöb/../1", "epoch 1", 2**63 - 1)
    header, said = opened(tmp_path / "tokens", "jöb/../1")
    assert said == plaintext(
        "jöb/../1",
        token="tok\n€n",
        expires=1_700_000_060_999,
        cursor={"epoch": "epoch 1", "seq": 2**63 - 1},
        context=context,
    )
    assert list(said["context"]) == ["a", "z"]
    assert int.from_bytes(header[24:32], "big") == 2
    await store.mark_ended("jöb/../1", '{"type": "job_complete"}')
    before = header
    header, said = opened(tmp_path / "tokens", "jöb/../1")
    assert (said["kind"], said["outcome"]) == ("ended", '{"type": "job_complete"}')
    assert header[32:44] != before[32:44]
    await store.rotate()
    header, again = opened(tmp_path / "tokens", "jöb/../1")
    assert again == said
    assert header[8:24] != before[8:24]
    assert int.from_bytes(header[24:32], "big") == 4


async def test_nothing_on_the_disk_is_in_clear(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(WRAPPING))
    await store.save("the-job", "the-token", ORIGIN, context={"k": "the-context"})
    for path in (tmp_path / "tokens").iterdir():
        for text in (b"the-job", b"the-token", b"the-context", b"api.example", WRAPPING, b"the-job".hex().encode()):
            assert text not in path.name.encode() + path.read_bytes()


def vectors() -> list[JSON]:
    """What docs/format-vectors.json holds."""
    full = plaintext(
        "jöb/../2",
        token="tøken",
        kind="ended",
        expires=1_700_000_060_999,
        cursor={"epoch": "e", "seq": 7},
        outcome='{"type":"job_complete"}',
        context={"a": "b"},
    )
    salt = base64.b64encode(fixed("salt", 16)).decode()
    argon2id: JSON = {"name": "argon2id", "m": 64, "t": 1, "p": 2, "salt": salt}
    scrypt: JSON = {"name": "scrypt", "n": 16, "r": 8, "p": 1, "salt": salt}
    cases = [
        ("the program's own key", keyset(), "j1", plaintext("j1"), "root 1"),
        ("two keys, a record under the older", keyset(keys=("root 1", "root 2")), "jöb/../2", full, "root 1"),
        ("a passphrase, Argon2id", keyset(argon2id, "passphrase"), "j3", plaintext("j3", token=None), "root 1"),
        ("a passphrase, scrypt", keyset(scrypt, "passphrase"), "j4", plaintext("j4", token="t" * 300), "root 1"),
    ]
    return [
        {
            "name": name,
            "wrapping key": WRAPPING.hex() if keys["names"]["source"] == "caller" else None,
            "passphrase": None if keys["names"]["source"] == "caller" else PASSPHRASE,
            "keyset.json": summed(keys).decode(),
            "file": f"{tag_of(job).hex()}.tok",
            "bytes": base64.b64encode(record(job, padded(canonical(said)), key=key)).decode(),
            "plaintext": said,
        }
        for name, keys, job, said, key in cases
    ]


VECTORS = json.loads((DOCS / "format-vectors.json").read_text()) if (DOCS / "format-vectors.json").exists() else []


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
async def test_the_store_reads_the_vectors(tmp_path: Path, vector: JSON) -> None:
    folder = tmp_path / "tokens"
    put(folder, vector["keyset.json"].encode(), (bytes.fromhex(vector["file"][:32]), base64.b64decode(vector["bytes"])))
    key, passphrase, said = vector["wrapping key"], vector["passphrase"], vector["plaintext"]
    provider: KeyProvider = CallerKey(bytes.fromhex(key)) if key else PassphraseKey(lambda: passphrase)
    store = TokenStore(folder, provider=provider, now=lambda: 1_700_000_000)
    found = await store.read(said["job"])
    assert found is not None
    assert (found.job, found.origin, found.saved) == (said["job"], said["origin"], said["saved"] / 1000)
    assert found.token == (None if said["token"] is None else Secret(said["token"]))
    assert found.expires == (None if said["expires"] is None else said["expires"] / 1000)
    assert found.cursor == (None if said["cursor"] is None else Cursor(**said["cursor"]))
    assert (found.outcome, dict(found.context)) == (said["outcome"], said["context"])
    assert await store.jobs() == [said["job"]]


def test_the_vectors_are_those_of_this_document() -> None:
    assert vectors() == VECTORS


# --- what a reader must reject -----------------------------------------------------------------------------------

TAG = tag_of("j1")
GOOD = summed(keyset())


def spoiled(change: Callable[[JSON], object], *, right_sum: bool = True) -> bytes:
    """A keyset changed by `change`."""
    changed = keyset()
    change(changed)
    return summed(changed) if right_sum else canonical({**changed, "sum": hashlib.sha256(b"").hexdigest()})


def plain(**more: object) -> bytes:
    """A record of j1 with another plaintext, sealed well."""
    return record("j1", padded(canonical(plaintext("j1", **more))))


def bare(text: bytes) -> bytes:
    """A record of j1 with these bytes as its plaintext."""
    return record("j1", text)


SAID = canonical(plaintext("j1"))

RECORDS: list[tuple[str, bytes, type[TokenStoreError]]] = [
    ("R1 empty", b"", Damaged),
    ("R1 a header alone", record("j1")[:44], Damaged),
    ("R1 no block", record("j1", b""), Damaged),
    ("R1 half a block", record("j1", padded(SAID)[:-128]), Damaged),
    ("R1 a byte more", record("j1") + b"\0", Damaged),
    ("R1 too long", record("j1", padded(canonical(plaintext("j1", token="t" * 65536)))), Damaged),
    ("R2 other magic", record("j1", magic=b"AGE1\x01\0\0\0"), Damaged),
    ("R3 version 2", record("j1", magic=b"TWL2\x01\0\0\0"), UnknownVersion),
    ("R3 suite 2", record("j1", magic=b"TWL1\x02\0\0\0"), UnknownVersion),
    ("R4 reserved bytes", record("j1", magic=b"TWL1\x01\0\0\x01"), Damaged),
    ("R5 unknown key", record("j1", key="root 2"), Damaged),
    ("R6 another name", record("j1", tag=tag_of("j2")), Damaged),
    ("R6 another key", record("j1")[:8] + record("j1")[8:24] + bytes(8) + record("j1")[32:], Damaged),
    ("R7 not JSON", bare(padded(b"{")), Damaged),
    ("R7 not UTF-8", bare(padded(SAID.replace(b"token of", b"token \xff\xfe"))), Damaged),
    ("R7 unknown member", plain(more=1), Damaged),
    ("R7 missing member", bare(padded(SAID.replace(b',"cursor":null', b""))), Damaged),
    ("R7 doubled member", bare(padded(SAID.replace(b'"cursor":null', b'"cursor":null,"cursor":null'))), Damaged),
    ("R7 reordered", bare(padded(canonical(dict(reversed(plaintext("j1").items()))))), Damaged),
    ("R7 white space", bare(padded(SAID.replace(b'"job":', b'"job": '))), Damaged),
    ("R7 other escapes", bare(padded(SAID.replace(b'"j1"', b'"\\u006a1"'))), Damaged),
    ("R7 unsorted context", plain(context={"b": "1", "a": "2"}), Damaged),
    ("R7 a number spelled otherwise", bare(padded(SAID.replace(b"1700000000123", b"1700000000123.0"))), Damaged),
    ("R7 too much padding", bare(padded(SAID) + b" " * 256), Damaged),
    ("R7 padding of another byte", bare(SAID + b"\0" * (-len(SAID) % 256)), Damaged),
    ("R7 empty job", plain(job=""), Damaged),
    ("R7 empty token", plain(token=""), Damaged),
    ("R7 negative time", plain(saved=-1), Damaged),
    ("R7 seq too high", plain(cursor={"epoch": "e", "seq": 2**63}), Damaged),
    ("R7 unknown kind", plain(kind="dead"), Damaged),
    ("R8 ended without an outcome", plain(kind="ended"), Damaged),
    ("R8 live with an outcome", plain(outcome="{}"), Damaged),
    ("R9 another job", plain(job="j2"), RecordMismatch),
    ("R9 another origin", plain(origin="https://evil.example:443"), RecordMismatch),
]

_SALT = base64.b64encode(bytes(16)).decode()


def costs(**kdf: object) -> bytes:
    """A keyset that asks for these costs."""
    return spoiled(lambda k: k["keys"][0].update(source="passphrase", kdf={**kdf, "salt": _SALT}))


KEYSETS: list[tuple[str, bytes | None, type[TokenStoreError]]] = [
    ("K1 empty", b"", Damaged),
    ("K1 not JSON", b"{", Damaged),
    ("K1 not an object", b"[]", Damaged),
    ("K1 too long", GOOD + b" " * 16384, Damaged),
    ("K2 version 2", spoiled(lambda k: k.update(v=2)), UnknownVersion),
    ("K2 version 2 of another shape", b'{"v":2}', UnknownVersion),
    ("K3 unknown member", spoiled(lambda k: k.update(more=1)), Damaged),
    ("K3 unknown member of an entry", spoiled(lambda k: k["keys"][0].update(more=1)), Damaged),
    ("K3 missing member", spoiled(lambda k: k.pop("names")), Damaged),
    ("K3 white space", GOOD + b"\n", Damaged),
    ("K3 reordered", canonical(dict(reversed(json.loads(GOOD).items()))), Damaged),
    ("K3 a sum that does not fit", spoiled(lambda k: None, right_sum=False), Damaged),
    ("K3 unknown source", spoiled(lambda k: k["keys"][0].update(source="cloud")), Damaged),
    ("K3 unknown kdf", spoiled(lambda k: k["keys"][0].update(kdf={"name": "pbkdf2"})), Damaged),
    ("K3 an id of another length", spoiled(lambda k: k["keys"][0].update(id="00")), Damaged),
    ("K3 a wrapped key of another length", spoiled(lambda k: k["names"].update(wrapped="AAAA")), Damaged),
    ("K4 unknown primary", spoiled(lambda k: k.update(primary="0" * 32)), Damaged),
    ("K4 the name key as primary", spoiled(lambda k: k.update(primary=k["names"]["id"])), Damaged),
    ("K4 no keys", spoiled(lambda k: k.update(keys=[])), Damaged),
    ("K4 an id held twice", spoiled(lambda k: k["keys"].append(k["keys"][0])), Damaged),
    ("K5 Argon2id, memory", costs(name="argon2id", m=1048577, t=1, p=1), Damaged),
    ("K5 Argon2id, too little memory", costs(name="argon2id", m=15, t=1, p=2), Damaged),
    ("K5 Argon2id, passes", costs(name="argon2id", m=8, t=11, p=1), Damaged),
    ("K5 Argon2id, lanes", costs(name="argon2id", m=128, t=1, p=9), Damaged),
    ("K5 scrypt, cost", costs(name="scrypt", n=2**21, r=8, p=1), Damaged),
    ("K5 scrypt, no power of two", costs(name="scrypt", n=1000, r=8, p=1), Damaged),
    ("K5 scrypt, block", costs(name="scrypt", n=16, r=9, p=1), Damaged),
    ("K5 scrypt, lanes", costs(name="scrypt", n=16, r=8, p=5), Damaged),
    ("K6 an entry changed", spoiled(lambda k: k["keys"][0].update(made=1)), WrongKey),
    ("K6 keys exchanged", spoiled(lambda k: k["names"].update(wrapped=k["keys"][0]["wrapped"])), WrongKey),
    ("K7 another source", spoiled(lambda k: k["names"].update(source="env")), KeyUnavailable),
    ("K8 no keyset", None, Damaged),
    ("K8 another store's keyset", summed(keyset(keys=("root 9",))), Damaged),
]


@pytest.mark.parametrize(("name", "data", "error"), RECORDS, ids=[name for name, *_ in RECORDS])
async def test_a_record_is_rejected(tmp_path: Path, name: str, data: bytes, error: type[TokenStoreError]) -> None:
    put(tmp_path / "tokens", GOOD, (TAG, data), (tag_of("j2"), record("j2")))
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(WRAPPING))
    with pytest.raises(error) as caught:
        await store.load("j1", ORIGIN)
    assert caught.type is error
    assert "token of" not in str(caught.value)
    assert await store.load("j2", ORIGIN) == Secret("token of j2")
    if name != "R9 another origin":  # a save for another origin is lawful
        with pytest.raises(error):
            await store.save("j1", "new", ORIGIN)
    assert (tmp_path / "tokens" / f"{TAG.hex()}.tok").read_bytes() == data


@pytest.mark.parametrize(("data", "error"), [case[1:] for case in KEYSETS], ids=[name for name, *_ in KEYSETS])
async def test_a_keyset_is_rejected(tmp_path: Path, data: bytes | None, error: type[TokenStoreError]) -> None:
    put(tmp_path / "tokens", data, (TAG, record("j1")))
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(WRAPPING))
    calls: list[Callable[[], Any]] = [
        lambda: store.load("j1", ORIGIN),
        lambda: store.load("j2", ORIGIN),
        lambda: store.save("j1", "new", ORIGIN),
        lambda: store.save("j9", "new", ORIGIN),
        store.jobs,
    ]
    for call in calls:
        with pytest.raises(error) as caught:
            await call()
        assert caught.type is error
    assert (tmp_path / "tokens" / f"{TAG.hex()}.tok").read_bytes() == record("j1")
    if data is not None:
        assert (tmp_path / "tokens" / "keyset.json").read_bytes() == data


def test_every_entry_of_the_list_has_a_test() -> None:
    listed = set(re.findall(r"^\| ([RKF]\d) \|", (DOCS / "format.md").read_text(), re.MULTILINE))
    tested = {name[:2] for name, *_ in (*RECORDS, *KEYSETS)} | {"F1"}  # F1 is test_folder.py
    assert tested == listed
    assert UnsafePermissions.__doc__


if __name__ == "__main__":
    sys.stdout.write(json.dumps(vectors(), ensure_ascii=False, indent=1) + "\n")
