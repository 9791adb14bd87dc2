"""The store's promises, on disk and in memory: what is saved is what is loaded, and nothing else ever is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import anyio
import pytest

from towline._exceptions import Damaged, InvalidArgument, KeyUnavailable, RecordMismatch, WrongKey
from towline._secret import Secret
from towline.storage import CallerKey, KeyFile, MemoryTokenStore, RecordKey, Store, TokenStore, _session
from towline.transport import parse_url

pytestmark = pytest.mark.anyio

ORIGIN = "https://api.example:443"
ADDRESS = f"{ORIGIN}/ws/progress"
OTHER = "https://other.example:443/ws/progress"
KEY = bytes(range(32))


def key(job: str, address: str = ADDRESS, protocol: str = "towline") -> RecordKey:
    """The key of a job's record."""
    return RecordKey(protocol, address, job)


async def token_of(store: Store, job: str, address: str = ADDRESS) -> Secret | None:
    """The token on record for a job."""
    record = await store.read(key(job, address))
    return None if record is None else record.token


class Clock:
    """The wall clock, set by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Store:
    if request.param == "memory":
        return MemoryTokenStore(now=clock)
    return TokenStore(tmp_path / "tokens", provider=CallerKey(KEY), now=clock)


async def test_a_saved_token_is_read(store: Store) -> None:
    assert await store.read(key("j1")) is None
    parameters = {"url": "wss://api.example/ws", "tries": 3, "after": 2.5, "strict": True}
    await store.save(key("j1"), "t-1", 1_700_000_100.25, parameters=parameters, secrets={"X-Key": "s-1"})
    assert await store.read(key("j2")) is None
    record = await store.read(key("j1"))
    assert record is not None
    assert record.key == RecordKey("towline", ADDRESS, "j1")
    assert (record.token, record.key.origin) == (Secret("t-1"), ORIGIN)
    assert (record.expires, record.saved) == (1_700_000_100.25, 1_700_000_000)
    assert (record.cursor, record.outcome, record.ended) == (None, None, False)
    assert dict(record.parameters) == parameters
    kinds = {name: type(value) for name, value in record.parameters.items()}
    assert kinds == {"url": str, "tries": int, "after": float, "strict": bool}
    assert dict(record.secrets) == {"X-Key": Secret("s-1")}


@pytest.mark.parametrize(
    "other",
    [
        key("1", OTHER),
        key("1", f"{ORIGIN}/jobs/ws/progress"),
        key("1", f"{ADDRESS}/"),
        key("1", "https://api.example:8443/ws/progress"),
        key("1", "http://api.example:443/ws/progress"),
        key("1", protocol="polling"),
    ],
    ids=str,
)
async def test_two_servers_may_have_a_job_of_the_same_id(store: Store, other: RecordKey) -> None:
    await store.save(key("1"), "t-1", parameters={"url": "one"}, secrets={"k": "s-1"})
    await store.save_cursor(key("1"), '{"seq":7,"epoch":"e1"}')
    assert await store.read(other) is None
    assert await store.save_cursor(other, '{"seq":1,"epoch":"e1"}') is False
    assert await store.mark_ended(other, "{}") is False
    await store.save(other, "t-2")
    await store.mark_ended(other, "{}")
    assert await store.jobs() == sorted([key("1"), other])
    first, second = await store.read(key("1")), await store.read(other)
    assert first is not None
    assert second is not None
    assert (first.token, first.cursor, first.ended) == (Secret("t-1"), '{"seq":7,"epoch":"e1"}', False)
    assert (dict(first.parameters), dict(first.secrets)) == ({"url": "one"}, {"k": Secret("s-1")})
    assert (second.token, second.cursor, second.ended) == (Secret("t-2"), None, True)
    assert (dict(second.parameters), dict(second.secrets)) == ({}, {})
    await store.delete(other)
    assert await store.jobs() == [key("1")]
    assert await token_of(store, "1") == Secret("t-1")


async def test_a_job_is_found_by_its_id_alone(store: Store) -> None:
    assert await store.find("1") == []
    await store.save(key("1"), "t-1")
    await store.save(key("2"), "t-2")
    assert [record.token for record in await store.find("1")] == [Secret("t-1")]
    await store.save(key("1", OTHER), "t-3")
    assert [record.key.server for record in await store.find("1")] == [f"towline at {ADDRESS}", f"towline at {OTHER}"]
    assert await store.find("3") == []
    with pytest.raises(InvalidArgument):
        await store.find("")


async def test_a_record_is_used_for_its_own_server_only(store: Store) -> None:
    await store.save(key("j1"), "hunter2")
    record = await store.read(key("j1"))
    assert record is not None
    assert record.for_address("towline", ADDRESS) is record
    for protocol, address in (("towline", OTHER), ("towline", f"{ORIGIN}/"), ("polling", ADDRESS)):
        with pytest.raises(RecordMismatch, match="not of") as caught:
            record.for_address(protocol, address)
        assert "hunter2" not in str(caught.value)


async def test_a_cursor_stays_with_the_token_and_never_goes_back(store: Store) -> None:
    assert await store.save_cursor(key("j1"), '{"seq":1,"epoch":"e1"}') is False
    assert await store.read(key("j1")) is None
    await store.save(key("j1"), "t-1", parameters={"a": "b"}, secrets={"c": "d"})
    assert await store.save_cursor(key("j1"), b'{"seq":7,"epoch":"e1"}') is True
    await store.save(key("j1"), "t-2")
    assert await store.save_cursor(key("j1"), '{"epoch":"e1","seq":5}') is True
    record = await store.read(key("j1"))
    assert record is not None
    assert (record.token, record.cursor) == (Secret("t-2"), '{"seq":7,"epoch":"e1"}')
    assert (dict(record.parameters), dict(record.secrets)) == ({"a": "b"}, {"c": Secret("d")})
    assert await store.save_cursor(key("j1"), '{"seq":0,"epoch":"e2"}') is True
    record = await store.read(key("j1"))
    assert record is not None
    assert record.cursor == '{"seq":0,"epoch":"e2"}'


async def test_a_mark_is_replaced_by_whatever_comes_next(store: Store) -> None:
    await store.save(key("j1"), None)
    for cursor in ('{"mark":"9"}', '{"mark":"1"}', '{"seq":9,"epoch":""}', '{"mark":""}', '{"seq":1,"epoch":""}', "{}"):
        assert await store.save_cursor(key("j1"), cursor) is True
        record = await store.read(key("j1"))
        assert record is not None
        assert record.cursor == cursor


async def test_a_cursor_that_cannot_be_kept_is_refused(store: Store) -> None:
    await store.save(key("j1"), "t-1")
    longest = json.dumps({"mark": "é" * 2043}, ensure_ascii=False, separators=(",", ":"))
    assert len(longest.encode()) == 4097
    for cursor in (
        longest,
        "",
        "{",
        "7",
        "null",
        "[1]",
        "[" * 4000,
        b"\xff",
        '{"seq":1}',
        '{"seq":-1,"epoch":"e"}',
        '{"seq":1.5,"epoch":"e"}',
        '{"seq":9223372036854775808,"epoch":"e"}',
        '{"seq":1,"epoch":null}',
        '{"seq":1,"epoch":"e","more":1}',
    ):
        with pytest.raises(InvalidArgument, match="cursor"):
            await store.save_cursor(key("j1"), cursor)
    longest = longest.replace("é", "e", 1)
    assert len(longest.encode()) == 4096
    assert await store.save_cursor(key("j1"), longest) is True
    record = await store.read(key("j1"))
    assert record is not None
    assert (record.cursor, record.token) == (longest, Secret("t-1"))


async def test_an_end_is_kept_until_its_expiry(store: Store, clock: Clock) -> None:
    assert await store.mark_ended(key("j1"), "{}") is False
    await store.save(key("j1"), "t-1", clock.now + 60)
    await store.save(key("live"), "t-2", clock.now + 60)
    assert await store.mark_ended(key("j1"), b'{"type":"job_complete"}') is True
    assert await store.mark_ended(key("j1"), '{"type":"error"}') is True
    record = await store.read(key("j1"))
    assert record is not None
    assert (record.outcome, record.token) == ('{"type":"job_complete"}', Secret("t-1"))
    clock.now += 61
    assert await store.jobs() == [key("live")]
    assert await store.find("j1") == []
    assert await store.read(key("j1")) is None
    assert await token_of(store, "live") == Secret("t-2")


async def test_an_ended_record_whose_time_is_up_leaves_the_disk(tmp_path: Path, clock: Clock) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(KEY), now=clock)
    await store.save(key("j1"), "t-1", clock.now + 60)
    await store.mark_ended(key("j1"), "{}")
    clock.now += 61
    assert await store.read(key("j1")) is None
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["keyset.json"]


async def test_jobs_are_listed_and_deleted(store: Store) -> None:
    assert await store.jobs() == []
    await store.delete(key("j1"))
    for job in ("b", "a/../é", "c"):
        await store.save(key(job), job)
    assert await store.jobs() == [key("a/../é"), key("b"), key("c")]
    await store.delete(key("b"))
    await store.delete(key("b"))
    assert await store.jobs() == [key("a/../é"), key("c")]
    assert await token_of(store, "b") is None
    await store.delete_all()
    assert await store.jobs() == []
    await store.save(key("a"), "t")
    assert await token_of(store, "a") == Secret("t")


async def test_a_job_may_have_no_token_of_its_own(store: Store) -> None:
    await store.save(key("j1", OTHER, "openai_response"), None, parameters={"id": "resp_1"})
    await store.save(key("j1"), "t-1")
    await store.save(key("j1"), None)
    await store.save_cursor(key("j1"), '{"mark":"m"}')
    found = await store.find("j1")
    assert [(record.key.protocol, record.token, record.cursor) for record in found] == [
        ("openai_response", None, None),
        ("towline", None, '{"mark":"m"}'),
    ]


@pytest.mark.parametrize(
    ("token", "expires", "more"),
    [
        ("", None, {}),
        ("\udfff", None, {}),
        ("t", math.nan, {}),
        ("t", -1.0, {}),
        ("t", None, {"parameters": {"": "v"}}),
        ("t", None, {"parameters": {"n": "\udfff"}}),
        ("t", None, {"parameters": {"n": None}}),
        ("t", None, {"parameters": {"n": ["v"]}}),
        ("t", None, {"parameters": {"n": 2**53 + 1}}),
        ("t", None, {"parameters": {"n": 0.00001}}),
        ("t", None, {"parameters": {"n": 1e16}}),
        ("t", None, {"parameters": {"n": math.nan}}),
        ("t", None, {"parameters": {"n": math.inf}}),
        ("t", None, {"secrets": {"": "s"}}),
        ("t", None, {"secrets": {"n": "\udfff"}}),
    ],
)
async def test_what_cannot_be_kept_is_refused(store: Store, token: str, expires: float | None, more: Any) -> None:
    with pytest.raises(InvalidArgument):
        await store.save(key("j"), token, expires, **more)
    assert await store.jobs() == []


@pytest.mark.parametrize(
    ("protocol", "address", "job"),
    [
        ("", ADDRESS, "j"),
        ("a b", ADDRESS, "j"),
        ("a\0", ADDRESS, "j"),
        ("é", ADDRESS, "j"),
        ("p", "", "j"),
        ("p", ORIGIN, "j"),
        ("p", "https://api.example/ws", "j"),
        ("p", "wss://api.example:443/ws", "j"),
        ("p", "https://API.example:443/ws", "j"),
        ("p", "https://user@api.example:443/ws", "j"),
        ("p", f"{ADDRESS}?token=t", "j"),
        ("p", f"{ADDRESS}#f", "j"),
        ("p", f"{ADDRESS}\0", "j"),
        ("p", f"{ADDRESS}é", "j"),
        ("p", ADDRESS, ""),
        ("p", ADDRESS, "\ud800"),
    ],
)
def test_what_cannot_be_a_key_is_refused(protocol: str, address: str, job: str) -> None:
    with pytest.raises(InvalidArgument):
        RecordKey(protocol, address, job)


def test_the_address_of_any_url_can_be_a_key() -> None:
    for url in (
        "wss://API.example",
        "wss://[::1]:9/a%20b?token=t",
        "ws://127.0.0.1:80/!$&'()*+,;=:@~",
        "wss://ü.de./_",
    ):
        address = parse_url(url).address
        assert RecordKey("p", address, "j").origin == str(parse_url(url).origin)
        assert "token" not in address


async def test_an_outcome_must_be_json(store: Store) -> None:
    await store.save(key("j1"), "t")
    for outcome in ("", "{", b"\xff"):
        with pytest.raises(InvalidArgument):
            await store.mark_ended(key("j1"), outcome)


async def test_a_record_has_a_limit(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(KEY))
    await store.save(key("j1"), "t")
    with pytest.raises(InvalidArgument, match="65536"):
        await store.mark_ended(key("j1"), '"' + "x" * 65536 + '"')
    assert await token_of(store, "j1") == Secret("t")


async def test_the_default_is_a_key_file_apart_from_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOWLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    store = TokenStore(app="anapp")
    await store.save(key("j1"), "t-1")
    assert store.folder == tmp_path / "state" / "anapp" / "tokens"
    file = tmp_path / "config" / "anapp" / "key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert await token_of(TokenStore(app="anapp"), "j1") == Secret("t-1")
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(KeyUnavailable, match="missing"):
        await token_of(TokenStore(app="anapp"), "j1")
    with pytest.raises(KeyUnavailable, match="missing"):
        await TokenStore(app="anapp").save(key("j2"), "t")
    monkeypatch.setenv("TOWLINE_KEY", "A" * 43 + "=")  # no way round the key that is gone
    with pytest.raises(KeyUnavailable, match="missing"):
        await token_of(TokenStore(app="anapp"), "j1")
    file.touch(0o600)
    file.write_bytes(kept)
    assert await token_of(TokenStore(app="anapp"), "j1") == Secret("t-1")


async def test_the_environment_gives_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    monkeypatch.setenv("TOWLINE_KEY", good)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    await TokenStore(tmp_path / "tokens").save(key("j1"), "t-1")
    assert await token_of(TokenStore(tmp_path / "tokens"), "j1") == Secret("t-1")
    assert not (tmp_path / "config").exists()
    for bad in ("", good[:-4], good[:-1], good + "\n", "A" * 43 + "=", "hunter2"):
        monkeypatch.setenv("TOWLINE_KEY", bad)
        with pytest.raises(KeyUnavailable) as caught:
            await token_of(TokenStore(tmp_path / "tokens"), "j1")
        assert not bad or bad not in str(caught.value)
        with pytest.raises(KeyUnavailable):
            await TokenStore(tmp_path / "new").save(key("j1"), "t")
    monkeypatch.setenv("TOWLINE_KEY", "HxAREhMUFRYXGBkaGxwdHgABAgMEBQYHCAkKCwwNDg8=")
    with pytest.raises(WrongKey):
        await token_of(TokenStore(tmp_path / "tokens"), "j1")
    monkeypatch.delenv("TOWLINE_KEY")
    with pytest.raises(KeyUnavailable, match="not set"):
        await token_of(TokenStore(tmp_path / "tokens"), "j1")


async def test_another_providers_key_does_not_open_it(tmp_path: Path) -> None:
    await TokenStore(tmp_path / "tokens", provider=CallerKey(KEY)).save(key("j1"), "t-1")
    with pytest.raises(KeyUnavailable, match="caller"):
        await token_of(TokenStore(tmp_path / "tokens", provider=KeyFile(tmp_path / "key")), "j1")
    with pytest.raises(KeyUnavailable, match="caller"):
        await token_of(TokenStore(tmp_path / "tokens"), "j1")
    with pytest.raises(WrongKey):
        await token_of(TokenStore(tmp_path / "tokens", provider=CallerKey(KEY[::-1])), "j1")


async def test_a_lost_keyset_is_not_an_empty_store(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    store = TokenStore(folder, provider=CallerKey(KEY))
    await store.save(key("j1"), "t-1")
    keyset = (folder / "keyset.json").read_bytes()
    (folder / "keyset.json").unlink()
    for call in (
        token_of(store, "j1"),
        store.find("j1"),
        store.save(key("j2"), "t"),
        store.delete(key("j1")),
        store.jobs(),
    ):
        with pytest.raises(Damaged, match="keyset is missing"):
            await call
    other = TokenStore(tmp_path / "other", provider=CallerKey(KEY))
    await other.save(key("j9"), "t-9")
    (tmp_path / "other" / "keyset.json").rename(folder / "keyset.json")
    for call in (
        token_of(store, "j1"),
        store.find("j1"),
        store.save(key("j2"), "t"),
        store.delete(key("j1")),
        store.jobs(),
    ):
        with pytest.raises(Damaged):
            await call
    await store.delete_all()
    assert list(folder.iterdir()) == []
    assert keyset != b""


async def test_a_cancelled_save_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(KEY))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.save(key("j1"), "t-1")
    assert await store.jobs() == []
    await store.save(key("j1"), "t-1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.save, key("j1"), "t-2")
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert await token_of(store, "j1") in (Secret("t-1"), Secret("t-2"))


async def test_reprs_show_no_secret(store: Store) -> None:
    parameters = {"url": "wss://api.example/ws?key=hunter2"}
    await store.save(key("j1"), "hunter2", parameters=parameters, secrets={"X-Key": "hunter2"})
    await store.save_cursor(key("j1"), '{"mark":"/next?sig=hunter2"}')
    record = await store.read(key("j1"))
    assert record is not None
    assert record.secrets["X-Key"].reveal() == "hunter2"
    assert "hunter2" not in f"{store!r} {record!r} {await store.find('j1')} {await store.jobs()} {CallerKey(KEY)!r}"


async def test_a_name_that_two_keys_share_gives_no_token_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(KEY))
    monkeypatch.setattr(_session, "tag_of", lambda *_: bytes(16))
    await store.save(key("j1"), "t-1")
    for call in (store.read(key("j1", OTHER)), store.save(key("j1", OTHER), "t-2"), store.read(key("j2"))):
        with pytest.raises(RecordMismatch):
            await call
    assert await token_of(store, "j1") == Secret("t-1")


async def test_another_records_damage_does_not_matter(tmp_path: Path) -> None:
    """A search opens only the files of its job, and a damaged one among them is not an absent one."""
    folder = tmp_path / "tokens"
    store = TokenStore(folder, provider=CallerKey(KEY))
    await store.save(key("j1"), "t-1")
    await store.save(key("j2"), "t-2")
    before = set(folder.glob("*.tok"))
    await store.save(key("j1", OTHER), "t-3")
    (damaged,) = set(folder.glob("*.tok")) - before
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert [record.token for record in await store.find("j2")] == [Secret("t-2")]
    assert await token_of(store, "j1") == Secret("t-1")
    with pytest.raises(Damaged):
        await store.find("j1")
    await store.delete(key("j1", OTHER))
    assert [record.token for record in await store.find("j1")] == [Secret("t-1")]
