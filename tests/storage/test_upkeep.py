"""rotate, rewrap and verify, and what they do when files are damaged or others write meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from towline._exceptions import Damaged, KeyUnavailable, UnsafePermissions, WriteFailed, WrongKey
from towline._secret import Secret
from towline.storage import CallerKey, KeyFile, RecordKey, TokenStore, Verification

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))


def key(job: str) -> RecordKey:
    """The key of a job's record."""
    return RecordKey("towline", "https://api.example:443/ws/progress", job)


async def token_of(store: TokenStore, job: str) -> Secret | None:
    """The token on record for a job."""
    record = await store.read(key(job))
    return None if record is None else record.token


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def store(folder: Path) -> TokenStore:
    return TokenStore(folder, provider=CallerKey(KEY))


def ids(folder: Path) -> list[str]:
    """The ids of the keyset's keys, the primary first."""
    keyset = json.loads((folder / "keyset.json").read_text())
    found = [entry["id"] for entry in keyset["keys"]]
    return sorted(found, key=lambda one: one != keyset["primary"])


def file_of(folder: Path, before: set[Path]) -> Path:
    """The record that was not there before."""
    (found,) = set(folder.glob("*.tok")) - before
    return found


async def save(store: TokenStore, *jobs: str) -> dict[str, Path]:
    """Save some jobs, and say where each is."""
    files = {}
    for job in jobs:
        before = set(store.folder.glob("*.tok"))
        await store.save(key(job), f"token of {job}")
        files[job] = file_of(store.folder, before)
    return files


async def test_a_rotation_seals_all_anew_and_forgets_the_old_key(store: TokenStore, folder: Path) -> None:
    assert await store.rotate() == 0
    assert await store.verify() == Verification((), (), (), ())
    files = await save(store, "a", "b")
    before = {path: path.read_bytes() for path in files.values()}
    old = ids(folder)
    other = TokenStore(folder, provider=CallerKey(KEY))
    assert await token_of(other, "a") == Secret("token of a")
    (folder / "0.tmp").touch(0o600)
    assert await store.rotate() == 2
    assert len(ids(folder)) == 1
    assert ids(folder) != old
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["keyset.json", *(path.name for path in files.values())]
    )
    for one in (store, other, TokenStore(folder, provider=CallerKey(KEY))):
        assert await token_of(one, "a") == Secret("token of a")
        assert await one.jobs() == [key("a"), key("b")]
    files["a"].write_bytes(before[files["a"]])  # a copy from before the rotation is of no use to anybody
    with pytest.raises(Damaged, match="does not have the key"):
        await token_of(store, "a")


async def test_a_damaged_record_keeps_the_key_it_was_sealed_with(store: TokenStore, folder: Path) -> None:
    files = await save(store, "a", "b", "c")
    good = files["b"].read_bytes()
    files["b"].write_bytes(good[:-1])
    files["c"].chmod(0o644)
    with pytest.raises(Damaged, match="2 records cannot be read"):
        await store.rotate()
    assert len(ids(folder)) == 2
    assert await token_of(store, "a") == Secret("token of a")
    files["b"].write_bytes(good)
    files["c"].chmod(0o600)
    assert await token_of(store, "b") == Secret("token of b")
    assert await store.rotate() == 3
    assert len(ids(folder)) == 1
    assert await store.jobs() == [key("a"), key("b"), key("c")]


async def test_keys_that_no_record_names_do_not_pile_up(store: TokenStore, folder: Path) -> None:
    files = await save(store, "a", "b", "c")
    files["b"].write_bytes(b"")
    files["c"].write_bytes(files["c"].read_bytes()[:-1])
    for _ in range(3):
        with pytest.raises(Damaged):
            await store.rotate()
    assert len(ids(folder)) == 1
    assert await token_of(store, "a") == Secret("token of a")


async def test_a_keyset_full_of_keys_is_not_written(store: TokenStore, folder: Path) -> None:
    files = await save(store, "a", "b")
    files["b"].chmod(0o640)
    with pytest.raises(WriteFailed, match="keyset is full"):
        for _ in range(100):
            with pytest.raises(Damaged):
                await store.rotate()
    assert await token_of(store, "a") == Secret("token of a")
    files["b"].chmod(0o600)
    assert await store.rotate() == 2
    assert len(ids(folder)) == 1


async def test_another_provider_takes_over(store: TokenStore, folder: Path, tmp_path: Path) -> None:
    files = await save(store, "a", "b")
    before = {path: path.read_bytes() for path in files.values()}
    key_file = KeyFile(tmp_path / "config" / "key")
    await store.rewrap(key_file)
    assert {path: path.read_bytes() for path in files.values()} == before
    assert await token_of(store, "a") == Secret("token of a")
    assert await token_of(TokenStore(folder, provider=key_file), "a") == Secret("token of a")
    with pytest.raises(KeyUnavailable, match="'file'"):
        await token_of(TokenStore(folder, provider=CallerKey(KEY)), "a")
    await store.rewrap(CallerKey(KEY[::-1]))
    with pytest.raises(WrongKey):
        await token_of(TokenStore(folder, provider=CallerKey(KEY)), "a")
    await store.rotate()
    assert await TokenStore(folder, provider=CallerKey(KEY[::-1])).jobs() == [key("a"), key("b")]


async def test_a_store_that_was_not_begun_takes_the_new_provider(
    store: TokenStore, folder: Path, tmp_path: Path
) -> None:
    await store.rewrap(KeyFile(tmp_path / "config" / "key"))
    assert not folder.exists()
    await store.save(key("a"), "t")
    assert b'"file"' in (folder / "keyset.json").read_bytes()


async def test_rewrapping_by_the_same_kind_does_not_look_at_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOWLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    await TokenStore(tmp_path / "tokens").save(key("a"), "t")
    monkeypatch.setenv("TOWLINE_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
    await TokenStore(tmp_path / "tokens").rewrap()
    assert b'"file"' in (tmp_path / "tokens" / "keyset.json").read_bytes()
    assert await token_of(TokenStore(tmp_path / "tokens"), "a") == Secret("t")


async def test_verify_names_what_is_wrong_and_changes_nothing(store: TokenStore, folder: Path) -> None:
    files = await save(store, "a", "b", "c", "d")
    files["b"].write_bytes(files["a"].read_bytes())
    files["c"].chmod(0o640)
    (folder / "0.tmp").touch(0o600)
    (folder / "notes.txt").touch(0o600)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    found = await store.verify()
    assert not found.is_sound
    assert [record.key.job for record in found.records] == ["a", "d"]
    assert {(type(error), error.path) for error in found.findings} == {
        (Damaged, files["b"]),
        (UnsafePermissions, files["c"]),
    }
    assert (found.leftovers, found.strangers) == (("0.tmp",), ("notes.txt",))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert "token of" not in repr(found)
