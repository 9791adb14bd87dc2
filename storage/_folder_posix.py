"""A private folder and the files in it, on POSIX. Every system call that the store makes is here.

All names are looked up from the folder's own descriptor, so that what was checked is what is used. A file is
replaced whole: temporary, fsync, rename, fsync of the folder. The lock is `flock` on the same descriptor (no lock
file): each open folder has its own, so it holds between threads as well as between processes.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .._exceptions import Damaged, ReadFailed, UnsafePermissions, WriteFailed
from ._folder import Stamp, never, renamed, says, take_lock, temporary_of

assert sys.platform != "win32"  # this is how a type checker is told what system this module is for

_CHUNK: Final = 64 * 1024
# Linux: a read that notes its time makes the next fsync write one inode more, a quarter of a save.
_NO_ATIME: Final[int] = getattr(os, "O_NOATIME", 0)


class Folder:
    """An open, checked folder; a context manager that closes it and with it drops its lock.

    With `private` (the store's own folder) no right may stand for group or others; without it (the folder of a key
    file, which other programs may share) only their right to write is refused.
    """

    own_names: Final[frozenset[str]] = frozenset()  # of files that the folder itself needs

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    # --- opening and closing ---

    @classmethod
    def open(cls, path: Path, *, private: bool = True) -> Self | None:
        """Open the folder, or return None where there is none. Raises `UnsafePermissions`, `ReadFailed`."""
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
        """Open the folder, making it and what is missing above it with mode 0700. Raises `WriteFailed` too."""
        folder = cls.open(path, private=private)
        if folder is None:
            with renamed(WriteFailed, path):
                _make(path)
            folder = cls.open(path, private=private)
        if folder is None:
            raise WriteFailed("the folder went away as soon as it was made", path=path)
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # it was opened for reading: nothing can be lost here
            os.close(self._fd)

    # --- locking ---

    def lock(self, *, exclusive: bool, tick: Callable[[], None] = never) -> None:
        """Take the folder's lock, waiting at most `PATIENCE` seconds. `tick` is called while waiting and may raise."""

        def attempt() -> bool:
            try:
                fcntl.flock(self._fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        take_lock(attempt, exclusive=exclusive, path=self.path, tick=tick)

    # --- reading ---

    def stamp(self, name: str) -> Stamp | None:
        """What tells one version of a file from the next, or None where there is no such file."""
        with renamed(ReadFailed, self.path, name):
            try:
                found = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
        return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def read(self, name: str, *, limit: int) -> bytes | None:
        """The file's bytes, or None where there is no such file.

        Raises `UnsafePermissions`, `ReadFailed`, and `Damaged` for a file longer than `limit`.
        """
        try:
            # O_NONBLOCK: a FIFO with this name would hold us until somebody writes to it.
            fd = self._open(name)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENXIO):
                raise UnsafePermissions("is a symbolic link or no regular file", path=self.path / name) from exc
            raise ReadFailed(says(exc), path=self.path / name) from exc
        try:
            with renamed(ReadFailed, self.path, name):
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise UnsafePermissions("is no regular file", path=self.path / name)
                _check(found, self.path, 0o077, name)
                data = io.BytesIO()  # not bytes: a traceback that prints locals must not show a key file
                while data.tell() <= limit:
                    if not data.write(os.read(fd, min(limit + 1 - data.tell(), _CHUNK))):
                        return data.getvalue()
        finally:
            with suppress(OSError):
                os.close(fd)
        raise Damaged(f"is longer than {limit} bytes", path=self.path / name)

    def _open(self, name: str) -> int:
        # O_NONBLOCK: a FIFO with this name would hold us until somebody writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(name, flags | _NO_ATIME, dir_fd=self._fd)
        except PermissionError as exc:
            if exc.errno != errno.EPERM:
                raise
        return os.open(name, flags, dir_fd=self._fd)  # it is not ours: say so, after a look at its owner

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        with renamed(ReadFailed, self.path):
            return sorted(os.listdir(self._fd))  # noqa: PTH208 - a descriptor, not a path

    # --- writing, all under the exclusive lock ---

    def anchor(self) -> None:
        """Return when a power cut would not take away the folder's own name, nor those of ours above it.

        Called before the first file is written, by whoever does that: another process may have made the folder.
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
        """Put `data` in place of the file, and return when it would survive a power cut.

        Raises `WriteFailed`: the old file still stands; only if it was the folder's fsync that failed, the new one
        stands, whole, and a power cut could bring the old one back.
        """
        temporary = temporary_of(name)
        with renamed(WriteFailed, self.path, name):
            try:
                fd = self._create(temporary)
            except FileExistsError:  # a writer was killed; the lock says that it is not alive
                os.unlink(temporary, dir_fd=self._fd)
                fd = self._create(temporary)
            try:
                try:
                    if stat.S_IMODE(os.fstat(fd).st_mode) != 0o600:  # the umask took something away
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
        """Remove the files that are there, and return when they would stay away after a power cut."""
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
    except FileExistsError:  # another process was faster
        return
    os.chmod(path, 0o700)  # noqa: PTH101 - whatever the umask took away


def _sync(fd: int) -> None:
    """Return when the disk itself has it: macOS's fsync stops at the drive's cache (fcntl(2), F_FULLFSYNC)."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # not every file system knows it
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def _check(found: os.stat_result, folder: Path, forbidden: int, name: str = "") -> None:
    if found.st_uid != os.geteuid():
        raise UnsafePermissions(f"belongs to user {found.st_uid}, not to {os.geteuid()}", path=folder / name)
    if found.st_mode & forbidden:
        mode = stat.S_IMODE(found.st_mode)
        raise UnsafePermissions(f"has mode {mode:04o}, which lets others in: chmod go-rwx", path=folder / name)
