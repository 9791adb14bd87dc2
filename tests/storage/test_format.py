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
from towline.storage import CallerKey, KeyProvider, PassphraseKey, RecordKey, TokenStore

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
ADDRESS = "https://api.example:443/ws/progress"
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
    return {"v": 2, "primary": entries[-1]["id"], "keys": entries, "names": entry("names", "name", kdf, source)}


def plaintext(job: str, /, **more: object) -> JSON:
    """What a record says."""
    said: JSON = {"protocol": "towline", "address": ADDRESS, "job": job, "token": f"token of {job}", "kind": "live"}
    said |= {"expires": None, "saved": 1_700_000_000_123, "cursor": None, "outcome": None}
    return {**said, "parameters": {}, "secrets": {}, **more}


def padded(text: bytes) -> bytes:
    """Spaces up to a multiple of 256."""
    return text + b" " * (-len(text) % 256)


def tag_of(job: str, address: str = ADDRESS, protocol: str = "towline", names: bytes = fixed("names", 32)) -> bytes:
    """The name of a record's file, as bytes."""
    texts = (f"job\0{job}", f"whole\0{protocol}\0{address}\0{job}")
    return b"".join(hmac.new(names, text.encode(), "sha256").digest()[:8] for text in texts)


def key(job: str, address: str = ADDRESS, protocol: str = "towline") -> RecordKey:
    """A record's key, as the store takes it."""
    return RecordKey(protocol, address, job)


def record(
    job: str,
    plain: bytes | None = None,
    *,
    key: str = "root 1",
    magic: bytes = b"TWL2\x01\0\0\0",
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
    tag = tag_of(job, names=names)
    data = (folder / f"{tag.hex()}.tok").read_bytes()
    assert (data[:8], (len(data) - 60) % 256) == (b"TWL2\x01\0\0\0", 0)
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
    parameters = {"z": "</é\u2028\x7f", "a": '"\\\n\x01', "n": -(2**53), "f": 0.1, "g": 2.0**53, "h": 3.0, "b": False}
    secrets = {"X-Zed": "</é\u2028\x7f", "X-Key": ""}
    await store.save(key("jöb/../1"), "tok\n€n", 1_700_000_060.9991, parameters=parameters, secrets=secrets)
    cursor = '{"epoch": "epoch \\u0031", "seq": 9223372036854775807}'
    await store.save_cursor(key("jöb/../1"), cursor)
    header, said = opened(tmp_path / "tokens", "jöb/../1")
    assert said == plaintext(
        "jöb/../1",
        token="tok\n€n",
        expires=1_700_000_060_999,
        cursor=cursor,
        parameters=parameters,
        secrets=secrets,
    )
    assert list(said["parameters"]) == ["a", "b", "f", "g", "h", "n", "z"]
    assert list(said["secrets"]) == ["X-Key", "X-Zed"]
    assert int.from_bytes(header[24:32], "big") == 2
    await store.mark_ended(key("jöb/../1"), '{"type": "job_complete"}')
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
    parameters = {"the-name": "the-parameter"}
    secrets = {"the-header": "the-secret"}
    await store.save(key("the-job", protocol="the-protocol"), "the-token", parameters=parameters, secrets=secrets)
    await store.save_cursor(key("the-job", protocol="the-protocol"), '{"mark":"the-mark"}')
    await store.mark_ended(key("the-job", protocol="the-protocol"), '"the-outcome"')
    texts = [b"the-", b"api.example", b"/ws/progress", WRAPPING, b"the-".hex().encode()]
    # Every offset within the three bytes that base64 spells at once.
    texts += [base64.b64encode(pad + b"the-secret")[4:-4] for pad in (b"", b"p", b"pp")]
    files = list((tmp_path / "tokens").iterdir())
    assert len(files) == 2
    for path in files:
        for text in texts:
            assert text not in path.name.encode() + path.read_bytes()


def vectors() -> list[JSON]:
    """What docs/format-vectors.json holds."""
    full = plaintext(
        "jöb/../2",
        token="tøken",
        kind="ended",
        expires=1_700_000_060_999,
        cursor='{"seq":7,"epoch":"e"}',
        outcome='{"type":"job_complete"}',
        parameters={"after": 2.5, "strict": True, "tries": 3, "url": "wss://api.example/ws/progress?v=2"},
        secrets={"X-Key": "a header's value"},
    )
    elsewhere = "http://[::1]:8080/jobs/j1"
    other = plaintext("j1", protocol="polling", address=elsewhere, token=None, cursor='{"mark":"\\"etag\\""}')
    salt = base64.b64encode(fixed("salt", 16)).decode()
    argon2id: JSON = {"name": "argon2id", "m": 64, "t": 1, "p": 2, "salt": salt}
    scrypt: JSON = {"name": "scrypt", "n": 16, "r": 8, "p": 1, "salt": salt}
    cases = [
        ("the program's own key", keyset(), "j1", plaintext("j1"), "root 1"),
        ("a job of the same id on another server", keyset(), "j1", other, "root 1"),
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
            "file": f"{tag.hex()}.tok",
            "bytes": base64.b64encode(record(job, padded(canonical(said)), key=key, tag=tag)).decode(),
            "plaintext": said,
        }
        for name, keys, job, said, key in cases
        if (tag := tag_of(job, said["address"], said["protocol"]))
    ]


def key_of(said: JSON) -> RecordKey:
    """The key of a record, by its plaintext."""
    return RecordKey(said["protocol"], said["address"], said["job"])


VECTORS = json.loads((DOCS / "format-vectors.json").read_text()) if (DOCS / "format-vectors.json").exists() else []


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
async def test_the_store_reads_the_vectors(tmp_path: Path, vector: JSON) -> None:
    folder = tmp_path / "tokens"
    put(folder, vector["keyset.json"].encode(), (bytes.fromhex(vector["file"][:32]), base64.b64decode(vector["bytes"])))
    wrapping, passphrase, said = vector["wrapping key"], vector["passphrase"], vector["plaintext"]
    provider: KeyProvider = CallerKey(bytes.fromhex(wrapping)) if wrapping else PassphraseKey(lambda: passphrase)
    store = TokenStore(folder, provider=provider, now=lambda: 1_700_000_000)
    wanted = key_of(said)
    found = await store.read(wanted)
    assert found is not None
    assert (found.key, found.saved) == (wanted, said["saved"] / 1000)
    assert found.token == (None if said["token"] is None else Secret(said["token"]))
    assert found.expires == (None if said["expires"] is None else said["expires"] / 1000)
    assert (found.cursor, found.outcome) == (said["cursor"], said["outcome"])
    assert dict(found.parameters) == said["parameters"]
    assert {name: secret.reveal() for name, secret in found.secrets.items()} == said["secrets"]
    assert await store.jobs() == [wanted]
    assert await store.find(said["job"]) == [found]
    assert await store.find("j") == []


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


def cursor(text: str) -> bytes:
    """A record of j1 with this cursor."""
    return plain(cursor=text)


SAID = canonical(plaintext("j1", parameters={"n": 3, "f": 2.5}))

RECORDS: list[tuple[str, bytes, type[TokenStoreError]]] = [
    ("R1 empty", b"", Damaged),
    ("R1 a header alone", record("j1")[:44], Damaged),
    ("R1 no block", record("j1", b""), Damaged),
    ("R1 half a block", record("j1", padded(SAID)[:-128]), Damaged),
    ("R1 a byte more", record("j1") + b"\0", Damaged),
    ("R1 too long", record("j1", padded(canonical(plaintext("j1", token="t" * 65536)))), Damaged),
    ("R2 other magic", record("j1", magic=b"AGE1\x01\0\0\0"), Damaged),
    ("R3 version 1", record("j1", magic=b"TWL1\x01\0\0\0"), UnknownVersion),
    ("R3 version 3", record("j1", magic=b"TWL3\x01\0\0\0"), UnknownVersion),
    ("R3 suite 2", record("j1", magic=b"TWL2\x02\0\0\0"), UnknownVersion),
    ("R4 reserved bytes", record("j1", magic=b"TWL2\x01\0\0\x01"), Damaged),
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
    ("R7 unsorted parameters", plain(parameters={"b": "1", "a": "2"}), Damaged),
    ("R7 unsorted secrets", plain(secrets={"b": "1", "a": "2"}), Damaged),
    ("R7 a nameless parameter", plain(parameters={"": "1"}), Damaged),
    ("R7 a nameless secret", plain(secrets={"": "1"}), Damaged),
    ("R7 a parameter of another kind", plain(parameters={"n": None}), Damaged),
    ("R7 a nested parameter", plain(parameters={"n": {"m": 1}}), Damaged),
    ("R7 a secret of another kind", plain(secrets={"n": 1}), Damaged),
    ("R7 a whole number too large", plain(parameters={"n": 2**53 + 1}), Damaged),
    ("R7 a fraction too large", plain(parameters={"n": 2.0**53 + 2}), Damaged),
    ("R7 a fraction too small", bare(padded(SAID.replace(b"2.5", b"0.00009"))), Damaged),
    ("R7 an exponent", bare(padded(SAID.replace(b"2.5", b"25e-1"))), Damaged),
    ("R7 a needless digit", bare(padded(SAID.replace(b"2.5", b"2.50"))), Damaged),
    ("R7 a number spelled otherwise", bare(padded(SAID.replace(b"1700000000123", b"1700000000123.0"))), Damaged),
    ("R7 too much padding", bare(padded(SAID) + b" " * 256), Damaged),
    ("R7 padding of another byte", bare(SAID + b"\0" * (-len(SAID) % 256)), Damaged),
    ("R7 empty job", plain(job=""), Damaged),
    ("R7 empty token", plain(token=""), Damaged),
    ("R7 negative time", plain(saved=-1), Damaged),
    ("R7 empty protocol", plain(protocol=""), Damaged),
    ("R7 address without a port", plain(address="https://api.example/ws/progress"), Damaged),
    ("R7 address without a path", plain(address="https://api.example:443"), Damaged),
    ("R7 address with a query", plain(address=f"{ADDRESS}?token=t"), Damaged),
    ("R7 a cursor that is not text", plain(cursor={"seq": 1, "epoch": "e"}), Damaged),
    ("R7 unknown kind", plain(kind="dead"), Damaged),
    ("R8 ended without an outcome", plain(kind="ended"), Damaged),
    ("R8 live with an outcome", plain(outcome="{}"), Damaged),
    ("R9 another job", plain(job="j2"), RecordMismatch),
    ("R9 another server", plain(address="https://evil.example:443/ws/progress"), RecordMismatch),
    ("R9 another path", plain(address="https://api.example:443/ws"), RecordMismatch),
    ("R9 another protocol", plain(protocol="polling"), RecordMismatch),
    ("R10 a cursor that is not JSON", cursor("{"), Damaged),
    ("R10 a cursor that is not an object", cursor("7"), Damaged),
    ("R10 a cursor too long", cursor(json.dumps({"mark": "m" * 4086}, separators=(",", ":"))), Damaged),
    ("R10 seq too high", cursor('{"seq":9223372036854775808,"epoch":"e"}'), Damaged),
    ("R10 seq without epoch", cursor('{"seq":1}'), Damaged),
    ("R10 seq and more", cursor('{"seq":1,"epoch":"e","more":1}'), Damaged),
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
    ("K2 version 1", spoiled(lambda k: k.update(v=1)), UnknownVersion),
    ("K2 version 3", spoiled(lambda k: k.update(v=3)), UnknownVersion),
    ("K2 version 3 of another shape", b'{"v":3}', UnknownVersion),
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


@pytest.mark.parametrize(("data", "error"), [case[1:] for case in RECORDS], ids=[name for name, *_ in RECORDS])
async def test_a_record_is_rejected(tmp_path: Path, data: bytes, error: type[TokenStoreError]) -> None:
    put(tmp_path / "tokens", GOOD, (TAG, data), (tag_of("j2"), record("j2")))
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(WRAPPING))
    calls: list[Callable[[], Any]] = [
        lambda: store.read(key("j1")),
        lambda: store.find("j1"),
        lambda: store.save(key("j1"), "new"),
        lambda: store.save_cursor(key("j1"), "{}"),
        lambda: store.mark_ended(key("j1"), "{}"),
        store.jobs,
    ]
    for call in calls:
        with pytest.raises(error) as caught:
            await call()
        assert caught.type is error
        assert "token of" not in str(caught.value)
    other = await store.read(key("j2"))
    assert other is not None
    assert other.token == Secret("token of j2")
    assert await store.find("j2") == [other]
    assert (tmp_path / "tokens" / f"{TAG.hex()}.tok").read_bytes() == data


@pytest.mark.parametrize(("data", "error"), [case[1:] for case in KEYSETS], ids=[name for name, *_ in KEYSETS])
async def test_a_keyset_is_rejected(tmp_path: Path, data: bytes | None, error: type[TokenStoreError]) -> None:
    put(tmp_path / "tokens", data, (TAG, record("j1")))
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(WRAPPING))
    calls: list[Callable[[], Any]] = [
        lambda: store.read(key("j1")),
        lambda: store.read(key("j2")),
        lambda: store.find("j1"),
        lambda: store.find("j2"),
        lambda: store.save(key("j1"), "new"),
        lambda: store.save(key("j9"), "new"),
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
    listed = set(re.findall(r"^\| ([RKF]\d+) \|", (DOCS / "format.md").read_text(), re.MULTILINE))
    tested = {name.split()[0] for name, *_ in (*RECORDS, *KEYSETS)} | {"F1"}  # F1 is test_folder.py
    assert tested == listed
    assert UnsafePermissions.__doc__


if __name__ == "__main__":
    sys.stdout.write(json.dumps(vectors(), ensure_ascii=False, indent=1) + "\n")
