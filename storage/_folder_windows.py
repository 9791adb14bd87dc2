"""A private folder and its files, on Windows.

It differs from POSIX as docs/format.md says. The user's profile folder decides who may read (Python 3.12.4 and later
create the folder for its owner alone). A folder has no lock and no fsync, so we lock a byte of the file `lock`, and a
rename is as durable as NTFS's journal makes it.
"""

from __future__ import annotations

import msvcrt
import os
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from .._exceptions import ReadFailed, UnsafePermissions, WriteFailed
from ._folder import Stamp, never, read_file, renamed, says, take_lock, temporary_of

assert sys.platform == "win32"  # for type checkers: this module is for one system

_LOCK: Final = "lock"
_REPLACE_TRIES: Final = 20  # a virus scanner that holds the file open releases it within milliseconds


class Folder:
    """See `_folder_posix.Folder`: the same methods with the same guarantees, except for the differences above."""

    own_names: Final[frozenset[str]] = frozenset({_LOCK})

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def open(cls, path: Path, *, private: bool = True) -> Self | None:
        """Open the folder, or return None if it does not exist."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ReadFailed(says(exc), path=path) from exc
        if not stat.S_ISDIR(found.st_mode) or _is_link(found):
            raise UnsafePermissions("is not a folder, or is a link to one", path=path)
        return cls(path)

    @classmethod
    def make(cls, path: Path, *, private: bool = True) -> Self:
        """Open the folder; create it and missing parents."""
        with renamed(WriteFailed, path):
            path.mkdir(0o700, parents=True, exist_ok=True)
        folder = cls.open(path)
        if folder is None:
            raise WriteFailed("the folder was removed right after it was created", path=path)
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)  # this also releases the lock

    def lock(self, *, exclusive: bool, tick: Callable[[], None] = never) -> None:
        """Acquire the folder's lock. Windows has only exclusive locks, so readers also wait for each other."""
        with renamed(WriteFailed if exclusive else ReadFailed, self.path, _LOCK):
            fd = self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_BINARY | os.O_NOINHERIT, 0o600)

        def attempt() -> bool:
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except PermissionError:
                return False
            return True

        take_lock(attempt, exclusive=exclusive, path=self.path, tick=tick)

    def stamp(self, name: str) -> Stamp | None:
        """The stamp of the file's present version, or None if there is no such file."""
        with renamed(ReadFailed, self.path, name):
            try:
                found = (self.path / name).lstat()
            except FileNotFoundError:
                return None
        return Stamp.of(found)

    def read(self, name: str, *, limit: int) -> bytes | None:
        """The file's bytes, or None if there is no such file."""
        path = self.path / name
        with renamed(ReadFailed, path):
            try:
                found = path.lstat()
                if not stat.S_ISREG(found.st_mode) or _is_link(found):
                    raise UnsafePermissions("is a link or not a regular file", path=path)
                fd = os.open(path, os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT)
            except FileNotFoundError:
                return None
            try:
                return read_file(fd, limit, path)
            finally:
                os.close(fd)

    def names(self) -> list[str]:
        """The names of all files, sorted."""
        with renamed(ReadFailed, self.path):
            return sorted(path.name for path in self.path.iterdir())

    def anchor(self) -> None:
        """Do nothing: NTFS journals the names of folders by itself."""

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Replace the file's content by `data`. Raises `WriteFailed`: the old file is still there."""
        path = self.path / name
        temporary = self.path / temporary_of(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT
        with renamed(WriteFailed, path):
            temporary.unlink(missing_ok=True)  # left by a killed writer: we hold the lock, so it is not alive
            fd = os.open(temporary, flags, 0o600)
            try:
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                    os.fsync(fd)
                finally:
                    os.close(fd)
                _replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise

    def remove(self, *names: str) -> None:
        """Remove these files if they exist."""
        with renamed(WriteFailed, self.path):
            for name in names:
                (self.path / name).unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    for _ in range(_REPLACE_TRIES - 1):
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(0.005)
        else:
            return
    source.replace(target)


def _is_link(found: os.stat_result) -> bool:
    return bool(found.st_file_attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)
