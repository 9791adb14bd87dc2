"""The store's promises, on disk and in memory: what is saved is what is loaded, and nothing else ever is."""

from __future__ import annotations

import math
from pathlib import Path

import anyio
import pytest

from towline._exceptions import Damaged, InvalidArgument, KeyUnavailable, RecordMismatch, WrongKey
from towline._secret import Secret
from towline.storage import CallerKey, Cursor, KeyFile, MemoryTokenStore, Store, TokenStore

pytestmark = pytest.mark.anyio

ORIGIN = "https://api.example:443"
KEY = bytes(range(32))


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


async def test_a_saved_token_is_loaded(store: Store) -> None:
    assert await store.load("j1", ORIGIN) is None
    await store.save("j1", "t-1", ORIGIN, 1_700_000_100.25, context={"url": "wss://api.example/ws"})
    assert await store.load("j1", ORIGIN) == Secret("t-1")
    assert await store.load("j2", ORIGIN) is None
    record = await store.read("j1")
    assert record is not None
    assert (record.job, record.origin, record.expires, record.saved) == ("j1", ORIGIN, 1_700_000_100.25, 1_700_000_000)
    assert (record.cursor, record.outcome, record.ended) == (None, None, False)
    assert dict(record.context) == {"url": "wss://api.example/ws"}


async def test_another_origin_does_not_get_the_token(store: Store) -> None:
    await store.save("j1", "hunter2", ORIGIN)
    with pytest.raises(RecordMismatch, match="not for") as caught:
        await store.load("j1", "https://evil.example:443")
    assert "hunter2" not in str(caught.value)


async def test_a_cursor_stays_with_the_token_and_never_goes_back(store: Store) -> None:
    assert await store.save_cursor("j1", "e1", 1) is False
    assert await store.read("j1") is None
    await store.save("j1", "t-1", ORIGIN, context={"a": "b"})
    assert await store.save_cursor("j1", "e1", 7) is True
    await store.save("j1", "t-2", ORIGIN)
    assert await store.save_cursor("j1", "e1", 5) is True
    record = await store.read("j1")
    assert record is not None
    assert (record.token, record.cursor, dict(record.context)) == (Secret("t-2"), Cursor("e1", 7), {"a": "b"})
    assert await store.save_cursor("j1", "e2", 0) is True
    record = await store.read("j1")
    assert record is not None
    assert record.cursor == Cursor("e2", 0)


async def test_another_origin_begins_the_record_anew(store: Store) -> None:
    await store.save("j1", "t-1", ORIGIN, context={"a": "b"})
    await store.save_cursor("j1", "e1", 7)
    await store.mark_ended("j1", "{}")
    await store.save("j1", "t-2", "https://other.example:443")
    record = await store.read("j1")
    assert record is not None
    assert (record.cursor, record.ended, dict(record.context)) == (None, False, {})


async def test_an_end_is_kept_until_its_expiry(store: Store, clock: Clock) -> None:
    assert await store.mark_ended("j1", "{}") is False
    await store.save("j1", "t-1", ORIGIN, clock.now + 60)
    await store.save("live", "t-2", ORIGIN, clock.now + 60)
    assert await store.mark_ended("j1", b'{"type":"job_complete"}') is True
    assert await store.mark_ended("j1", '{"type":"error"}') is True
    record = await store.read("j1")
    assert record is not None
    assert (record.outcome, record.token) == ('{"type":"job_complete"}', Secret("t-1"))
    clock.now += 61
    assert await store.jobs() == ["live"]
    assert await store.read("j1") is None
    assert await store.load("live", ORIGIN) == Secret("t-2")


async def test_an_ended_record_whose_time_is_up_leaves_the_disk(tmp_path: Path, clock: Clock) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(KEY), now=clock)
    await store.save("j1", "t-1", ORIGIN, clock.now + 60)
    await store.mark_ended("j1", "{}")
    clock.now += 61
    assert await store.read("j1") is None
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["keyset.json"]


async def test_jobs_are_listed_and_deleted(store: Store) -> None:
    assert await store.jobs() == []
    await store.delete("j1")
    for job in ("b", "a/../é", "c"):
        await store.save(job, job, ORIGIN)
    assert await store.jobs() == ["a/../é", "b", "c"]
    await store.delete("b")
    await store.delete("b")
    assert await store.jobs() == ["a/../é", "c"]
    assert await store.load("b", ORIGIN) is None
    await store.delete_all()
    assert await store.jobs() == []
    await store.save("a", "t", ORIGIN)
    assert await store.load("a", ORIGIN) == Secret("t")


async def test_a_job_may_need_no_token(store: Store) -> None:
    await store.save("j1", None, ORIGIN)
    assert await store.load("j1", ORIGIN) is None
    assert await store.jobs() == ["j1"]


@pytest.mark.parametrize(
    ("job", "token", "origin", "expires"),
    [
        ("", "t", ORIGIN, None),
        ("\ud800", "t", ORIGIN, None),
        ("j", "", ORIGIN, None),
        ("j", "\udfff", ORIGIN, None),
        ("j", "t", "", None),
        ("j", "t", ORIGIN, math.nan),
        ("j", "t", ORIGIN, -1.0),
    ],
)
async def test_what_cannot_be_kept_is_refused(
    store: Store, job: str, token: str, origin: str, expires: float | None
) -> None:
    with pytest.raises(InvalidArgument):
        await store.save(job, token, origin, expires)
    assert await store.jobs() == []


async def test_an_outcome_must_be_json(store: Store) -> None:
    await store.save("j1", "t", ORIGIN)
    for outcome in ("", "{", b"\xff"):
        with pytest.raises(InvalidArgument):
            await store.mark_ended("j1", outcome)


async def test_a_record_has_a_limit(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(KEY))
    await store.save("j1", "t", ORIGIN)
    with pytest.raises(InvalidArgument, match="65536"):
        await store.mark_ended("j1", '"' + "x" * 65536 + '"')
    assert await store.load("j1", ORIGIN) == Secret("t")


async def test_the_default_is_a_key_file_apart_from_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOWLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    store = TokenStore(app="anapp")
    await store.save("j1", "t-1", ORIGIN)
    assert store.folder == tmp_path / "state" / "anapp" / "tokens"
    key = tmp_path / "config" / "anapp" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert await TokenStore(app="anapp").load("j1", ORIGIN) == Secret("t-1")
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(KeyUnavailable, match="missing"):
        await TokenStore(app="anapp").load("j1", ORIGIN)
    with pytest.raises(KeyUnavailable, match="missing"):
        await TokenStore(app="anapp").save("j2", "t", ORIGIN)
    monkeypatch.setenv("TOWLINE_KEY", "A" * 43 + "=")  # no way round the key that is gone
    with pytest.raises(KeyUnavailable, match="missing"):
        await TokenStore(app="anapp").load("j1", ORIGIN)
    key.touch(0o600)
    key.write_bytes(kept)
    assert await TokenStore(app="anapp").load("j1", ORIGIN) == Secret("t-1")


async def test_the_environment_gives_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    monkeypatch.setenv("TOWLINE_KEY", good)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    await TokenStore(tmp_path / "tokens").save("j1", "t-1", ORIGIN)
    assert await TokenStore(tmp_path / "tokens").load("j1", ORIGIN) == Secret("t-1")
    assert not (tmp_path / "config").exists()
    for bad in ("", good[:-4], good[:-1], good + "\n", "A" * 43 + "=", "hunter2"):
        monkeypatch.setenv("TOWLINE_KEY", bad)
        with pytest.raises(KeyUnavailable) as caught:
            await TokenStore(tmp_path / "tokens").load("j1", ORIGIN)
        assert not bad or bad not in str(caught.value)
        with pytest.raises(KeyUnavailable):
            await TokenStore(tmp_path / "new").save("j1", "t", ORIGIN)
    monkeypatch.setenv("TOWLINE_KEY", "HxAREhMUFRYXGBkaGxwdHgABAgMEBQYHCAkKCwwNDg8=")
    with pytest.raises(WrongKey):
        await TokenStore(tmp_path / "tokens").load("j1", ORIGIN)
    monkeypatch.delenv("TOWLINE_KEY")
    with pytest.raises(KeyUnavailable, match="not set"):
        await TokenStore(tmp_path / "tokens").load("j1", ORIGIN)


async def test_another_providers_key_does_not_open_it(tmp_path: Path) -> None:
    await TokenStore(tmp_path / "tokens", provider=CallerKey(KEY)).save("j1", "t-1", ORIGIN)
    with pytest.raises(KeyUnavailable, match="caller"):
        await TokenStore(tmp_path / "tokens", provider=KeyFile(tmp_path / "key")).load("j1", ORIGIN)
    with pytest.raises(KeyUnavailable, match="caller"):
        await TokenStore(tmp_path / "tokens").load("j1", ORIGIN)
    with pytest.raises(WrongKey):
        await TokenStore(tmp_path / "tokens", provider=CallerKey(KEY[::-1])).load("j1", ORIGIN)


async def test_a_lost_keyset_is_not_an_empty_store(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    store = TokenStore(folder, provider=CallerKey(KEY))
    await store.save("j1", "t-1", ORIGIN)
    keyset = (folder / "keyset.json").read_bytes()
    (folder / "keyset.json").unlink()
    for call in (store.load("j1", ORIGIN), store.save("j2", "t", ORIGIN), store.delete("j1"), store.jobs()):
        with pytest.raises(Damaged, match="keyset is missing"):
            await call
    other = TokenStore(tmp_path / "other", provider=CallerKey(KEY))
    await other.save("j9", "t-9", ORIGIN)
    (tmp_path / "other" / "keyset.json").rename(folder / "keyset.json")
    for call in (store.load("j1", ORIGIN), store.save("j2", "t", ORIGIN), store.delete("j1"), store.jobs()):
        with pytest.raises(Damaged):
            await call
    await store.delete_all()
    assert list(folder.iterdir()) == []
    assert keyset != b""


async def test_a_cancelled_save_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens", provider=CallerKey(KEY))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.save("j1", "t-1", ORIGIN)
    assert await store.jobs() == []
    await store.save("j1", "t-1", ORIGIN)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.save, "j1", "t-2", ORIGIN)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert await store.load("j1", ORIGIN) in (Secret("t-1"), Secret("t-2"))


async def test_reprs_show_no_token(store: Store) -> None:
    await store.save("j1", "hunter2", ORIGIN)
    assert "hunter2" not in f"{store!r} {await store.read('j1')!r} {CallerKey(KEY)!r}"
