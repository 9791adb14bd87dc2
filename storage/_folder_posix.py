"""A private folder and its files, on POSIX. All system calls of the store are here.

All names are resolved relative to the folder's open descriptor, so the checked folder is the one in use. Writing
replaces a whole file: temporary, fsync, rename, fsync of the folder. The lock is `flock` on the same descriptor (no
lock file). Each open folder has its own descriptor, so the lock works between threads and between processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from .._exceptions import ReadFailed, UnsafePermissions, WriteFailed
from ._folder import Stamp, never, read_file, renamed, says, take_lock, temporary_of

assert sys.platform != "win32"  # for type checkers: this module is for one system

# Linux: a read that updates the access time makes the next fsync write one more inode, a quarter of a save's time.
_NO_ATIME: Final[int] = getattr(os, "O_NOATIME", 0)


class Folder:
    """An open, checked folder. As a context manager it closes the folder, which also releases its lock.

    With `private` (the store's own folder), group and others must have no permissions. Without it (the folder of a key
    file, which other programs may share), only write permission for them is rejected.
    """

    own_names: Final[frozenset[str]] = frozenset()  # files that the folder itself needs

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    # --- opening and closing ---

    @classmethod
    def open(cls, path: Path, *, private: bool = True) -> Self | None:
        """Open the folder, or return None if it does not exist. Raises `UnsafePermissions`, `ReadFailed`."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnsafePermissions("is not a folder, or is a symbolic link to one", path=path) from exc
            raise ReadFailed(says(exc), path=path) from exc
        try:
            with renamed(ReadFailed, path):
                found = os.fstat(fd)
            _check(found, path, 0o077 if private else 0o022)
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise
        return cls(path, fd)

    @classmethod
    def make(cls, path: Path, *, private: bool = True) -> Self:
        """Open the folder; create it and missing parents with mode 0700. Also raises `WriteFailed`."""
        folder = cls.open(path, private=private)
        if folder is None:
            with renamed(WriteFailed, path):
                _make(path)
            folder = cls.open(path, private=private)
        if folder is None:
            raise WriteFailed("the folder was removed right after it was created", path=path)
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        with suppress(OSError):  # opened for reading, so a failed close loses nothing
            os.close(self._fd)

    # --- locking ---

    def lock(self, *, exclusive: bool, tick: Callable[[], None] = never) -> None:
        """Acquire the folder's lock within `PATIENCE` seconds. `tick` is called while waiting and may raise."""

        def attempt() -> bool:
            try:
                fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        take_lock(attempt, exclusive=exclusive, path=self.path, tick=tick)

    # --- reading ---

    def stamp(self, name: str) -> Stamp | None:
        """The stamp of the file's present version, or None if there is no such file."""
        with renamed(ReadFailed, self.path, name):
            try:
                found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return Stamp.of(found)

    def read(self, name: str, *, limit: int) -> bytes | None:
        """The file's bytes, or None if there is no such file.

        Raises `UnsafePermissions`, `ReadFailed`, and `Damaged` for a file longer than `limit`.
        """
        try:
            fd = self._open(name)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO):
                raise UnsafePermissions("is a symbolic link or not a regular file", path=self.path / name) from exc
            raise ReadFailed(says(exc), path=self.path / name) from exc
        try:
            with renamed(ReadFailed, self.path, name):
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise UnsafePermissions("is not a regular file", path=self.path / name)
                _check(found, self.path, 0o077, name)
                return read_file(fd, limit, self.path / name)
        finally:
            with suppress(OSError):
                os.close(fd)

    def _open(self, name: str) -> int:
        # O_NONBLOCK: opening a FIFO with this name would otherwise block until another process writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(name, flags | _NO_ATIME, dir_fd=self._fd)
        except PermissionError as exc:
            if exc.errno != errno.EPERM:
                raise
        return os.open(name, flags, dir_fd=self._fd)  # another user's file: `_check` says so

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        with renamed(ReadFailed, self.path):
            return sorted(os.listdir(self._fd))  # noqa: PTH208 - a descriptor, not a path

    # --- writing, all under the exclusive lock ---

    def anchor(self) -> None:
        """Sync the names of the folder and of its parents that belong to us, so that they survive a power cut.

        Every first writer of a file calls this, because another process may have created the folder.
        """
        with renamed(WriteFailed, self.path):
            device = os.fstat(self._fd).st_dev
            for parent in self.path.absolute().parents:
                found = os.stat(parent)  # noqa: PTH116 - as for `_make`
                if found.st_uid != os.geteuid() or found.st_dev != device:
                    return
                fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    _sync(fd)
                finally:
                    os.close(fd)

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Replace the file's content by `data`, and return when the new content would survive a power cut.

        Raises `WriteFailed`: the old file is still there. Only if the fsync of the folder failed, the complete new file
        is there, and a power cut could restore the old one.
        """
        temporary = temporary_of(name)
        with renamed(WriteFailed, self.path, name):
            try:
                fd = self._create(temporary)
            except FileExistsError:  # left by a killed writer: we hold the lock, so it is not alive
                os.unlink(temporary, dir_fd=self._fd)
                fd = self._create(temporary)
            try:
                try:
                    if stat.S_IMODE(os.fstat(fd).st_mode) != 0o600:  # the umask removed permissions
                        os.fchmod(fd, 0o600)
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                    _sync(fd)
                finally:
                    os.close(fd)
                os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=self._fd)
                raise
            _sync(self._fd)

    def remove(self, *names: str) -> None:
        """Remove these files if they exist, and return when the removal would survive a power cut."""
        with renamed(WriteFailed, self.path):
            gone = False
            for name in names:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._fd)
                    gone = True
            if gone:
                _sync(self._fd)

    def _create(self, name: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._fd)


def _make(path: Path) -> None:
    try:
        try:
            os.mkdir(path, 0o700)  # noqa: PTH102 - every call that the crash tests interrupt goes through `os`
        except FileNotFoundError:
            _make(path.parent)
            os.mkdir(path, 0o700)  # noqa: PTH102
    except FileExistsError:  # another process created it first
        return
    os.chmod(path, 0o700)  # noqa: PTH101 - restores what the umask removed


def _sync(fd: int) -> None:
    """Sync to the disk itself: macOS's fsync only reaches the drive's cache (fcntl(2), F_FULLFSYNC)."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # not every file system supports it
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def _check(found: os.stat_result, folder: Path, forbidden: int, name: str = "") -> None:
    if found.st_uid != os.geteuid():
        raise UnsafePermissions(f"belongs to user {found.st_uid}, not to {os.geteuid()}", path=folder / name)
    if found.st_mode & forbidden:
        mode = stat.S_IMODE(found.st_mode)
        raise UnsafePermissions(f"has mode {mode:04o}, which gives others access: chmod go-rwx", path=folder / name)
