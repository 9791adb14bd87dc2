"""F1, the lock and the write itself: others are kept out, one writer at a time, all bytes or none."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from towline._exceptions import Damaged, InvalidArgument, ReadFailed, UnsafePermissions, WriteFailed
from towline._secret import Secret
from towline.storage import KeyFile, RecordKey, TokenStore, _folder, _folder_posix

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="modes and flock are POSIX's")]


def key(job: str) -> RecordKey:
    """The key of a job's record."""
    return RecordKey("towline", "https://api.example:443/ws/progress", job)


async def token_of(store: TokenStore, job: str) -> Secret | None:
    """The token on record for a job."""
    record = await store.read(key(job))
    return None if record is None else record.token


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "app" / "tokens"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "config" / "app" / "key"


@pytest.fixture
def store(folder: Path, key_file: Path) -> TokenStore:
    return TokenStore(folder, provider=KeyFile(key_file))


@pytest.fixture(params=[0o000, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
async def test_modes_do_not_depend_on_the_umask(store: TokenStore, tmp_path: Path) -> None:
    await store.save(key("j1"), "t")
    modes = {path.relative_to(tmp_path): path.stat().st_mode & 0o7777 for path in tmp_path.rglob("*")}
    assert {mode for path, mode in modes.items() if (tmp_path / path).is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if (tmp_path / path).is_file()} == {0o600}
    assert len(modes) == 8


def _loosen(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def _give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)


FILE_CHANGES = [_loosen(0o640), _loosen(0o602), _loosen(0o604), _link, _fifo, _folder_instead, _give_away]
FOLDER_CHANGES = [_loosen(0o770), _loosen(0o755), _loosen(0o701), _link, _give_away]
NAMES = ["group reads", "others write", "others read", "link", "fifo", "folder", "owner"]
FOLDER_NAMES = ["group writes", "others list", "others pass", "link", "owner"]


async def test_a_folder_may_be_named_by_text(store: TokenStore, folder: Path, key_file: Path) -> None:
    await store.save(key("j1"), Secret("t"))
    assert await token_of(TokenStore(str(folder), provider=KeyFile(key_file)), "j1") == Secret("t")


@pytest.mark.parametrize("change", FILE_CHANGES, ids=NAMES)
@pytest.mark.parametrize("name", ["record", "keyset", "key"])
async def test_a_file_open_to_others_is_refused(
    store: TokenStore, folder: Path, key_file: Path, name: str, change: Callable[[Path], None]
) -> None:
    await store.save(key("j1"), "t")
    change({"record": next(folder.glob("*.tok")), "keyset": folder / "keyset.json", "key": key_file}[name])
    fresh = TokenStore(folder, provider=KeyFile(key_file))
    with pytest.raises(UnsafePermissions):
        await token_of(fresh, "j1")
    with pytest.raises(UnsafePermissions):
        await fresh.save(key("j1"), "t-2")


@pytest.mark.parametrize("change", FOLDER_CHANGES, ids=FOLDER_NAMES)
async def test_a_folder_open_to_others_is_refused(
    store: TokenStore, folder: Path, change: Callable[[Path], None]
) -> None:
    await store.save(key("j1"), "t")
    change(folder)
    for call in (token_of(store, "j1"), store.save(key("j1"), "t"), store.delete(key("j1")), store.delete_all()):
        with pytest.raises(UnsafePermissions):
            await call


async def test_a_file_in_the_folders_place_is_refused(store: TokenStore, folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch(0o600)
    with pytest.raises(UnsafePermissions):
        await token_of(store, "j1")
    with pytest.raises(UnsafePermissions):
        await store.save(key("j1"), "t")


async def test_a_key_files_folder_may_be_read_but_not_written_by_others(
    store: TokenStore, folder: Path, key_file: Path
) -> None:
    await store.save(key("j1"), "t")
    key_file.parent.chmod(0o755)
    assert await token_of(TokenStore(folder, provider=KeyFile(key_file)), "j1") == Secret("t")
    key_file.parent.chmod(0o775)
    with pytest.raises(UnsafePermissions):
        await token_of(TokenStore(folder, provider=KeyFile(key_file)), "j1")


async def test_a_spoiled_key_file_is_damaged_or_no_key(store: TokenStore, folder: Path, key_file: Path) -> None:
    await store.save(key("j1"), "t")
    good = key_file.read_bytes()
    for bad in (b"", good[:-1], good + b"\n", good * 2, b"A" * 43 + b"=\n", b"\xff" * 45):
        key_file.write_bytes(bad)
        with pytest.raises(Damaged):
            await token_of(TokenStore(folder, provider=KeyFile(key_file)), "j1")
        assert key_file.read_bytes() == bad


async def test_the_key_file_does_not_lie_beside_the_records(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="in another folder than the records"):
        TokenStore(tmp_path / "tokens", provider=KeyFile(tmp_path / "tokens" / "key"))


async def test_a_leftover_of_a_killed_writer_is_taken_away(store: TokenStore, folder: Path) -> None:
    await store.save(key("j1"), "t-1")
    record = next(folder.glob("*.tok"))
    leftover = record.with_suffix(".tmp")
    leftover.touch(0o600)
    leftover.write_bytes(b"half")
    await store.save(key("j1"), "t-2")
    assert not leftover.exists()
    leftover.symlink_to(folder / "keyset.json")
    await store.save(key("j1"), "t-3")
    leftover.touch(0o600)
    await store.delete(key("j1"))
    assert sorted(path.name for path in folder.iterdir()) == ["keyset.json"]


async def test_a_write_in_small_pieces_is_whole(
    store: TokenStore, folder: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """An `os` that writes and reads seven bytes at a time."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, fd: int, data: memoryview) -> int:
            return os.write(fd, data[:7])

        def read(self, fd: int, size: int) -> bytes:
            return os.read(fd, min(size, 7))

    monkeypatch.setattr(_folder_posix, "os", Slow())
    await store.save(key("j1"), "t" * 1000)
    assert await token_of(TokenStore(folder, provider=KeyFile(key_file)), "j1") == Secret("t" * 1000)


async def test_a_folder_that_cannot_be_locked_is_not_written(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLocks:
        """An `fcntl` on a file system without locks."""

        def __getattr__(self, name: str) -> Any:
            return getattr(fcntl, name)

        def flock(self, fd: int, kind: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(_folder_posix, "fcntl", NoLocks())
    with pytest.raises(WriteFailed, match="cannot be locked: No locks available"):
        await store.save(key("j1"), "t")
    with pytest.raises(ReadFailed, match="cannot be locked"):
        await token_of(store, "j1")


async def test_a_lock_that_is_never_let_go_is_waited_for_so_long(
    store: TokenStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.save(key("j1"), "t")
    monkeypatch.setattr(_folder, "PATIENCE", 0.01)
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert await token_of(store, "j1") == Secret("t")
        with pytest.raises(WriteFailed, match="held the lock"):
            await store.save(key("j1"), "t-2")
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(ReadFailed, match="held the lock"):
            await token_of(store, "j1")
    finally:
        os.close(fd)
    assert await token_of(store, "j1") == Secret("t")


async def test_the_wait_for_a_lock_can_be_cancelled(store: TokenStore, folder: Path) -> None:
    await store.save(key("j1"), "t")
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with anyio.fail_after(5):  # far less than PATIENCE
            with anyio.move_on_after(0.05) as scope:
                await store.save(key("j1"), "t-2")
        assert scope.cancelled_caught
    finally:
        os.close(fd)
    assert await token_of(store, "j1") == Secret("t")


async def test_many_tasks_of_one_store_do_not_lose_each_others_saves(store: TokenStore) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(store.save, key(f"j{number}"), f"t{number}")
    assert await store.jobs() == sorted(key(f"j{number}") for number in range(20))
