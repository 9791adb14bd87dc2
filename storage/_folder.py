"""The common parts of the two folder implementations. `_files` picks the one for this operating system."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Self

from .._exceptions import Damaged, ReadFailed, TokenStoreError, WriteFailed

PATIENCE: Final = 10.0  # seconds to wait for another process's lock, which is normally held for milliseconds
TEMPORARY: Final = ".tmp"
_CHUNK: Final = 64 * 1024


class Stamp(NamedTuple):
    """Identifies a version of a file: equal stamps mean the same content, because files are only ever replaced."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        """The stamp of a file with this status."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def read_file(fd: int, limit: int, path: Path) -> bytes:
    """The bytes of an open file. Raises `Damaged` if it is longer than `limit`."""
    data = io.BytesIO()  # not bytes: a traceback that prints locals must not show the content of a key file
    while data.tell() <= limit:
        if not data.write(os.read(fd, min(limit + 1 - data.tell(), _CHUNK))):
            return data.getvalue()
    raise Damaged(f"is longer than {limit} bytes", path=path)


def never() -> None:
    """The `tick` of a call that cannot be cancelled."""


def temporary_of(name: str) -> str:
    """The temporary file's name: the lock allows one writer at a time, so at most one temporary can be left over."""
    return Path(name).stem + TEMPORARY


def take_lock(attempt: Callable[[], bool], *, exclusive: bool, path: Path, tick: Callable[[], None]) -> None:
    """Poll `attempt` until it returns true (it has the lock). `tick` may raise to end the wait."""
    refusal: type[TokenStoreError] = WriteFailed if exclusive else ReadFailed
    deadline = time.monotonic() + PATIENCE
    pause = 0.0005
    while True:
        try:
            if attempt():
                return
        except OSError as exc:
            raise refusal(f"the folder cannot be locked: {says(exc)}", path=path) from exc
        if time.monotonic() >= deadline:
            raise refusal(f"another process has held the lock for {PATIENCE:g} s; try again", path=path)
        tick()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


@contextmanager
def renamed(ours: type[TokenStoreError], folder: Path, name: str = "") -> Iterator[None]:
    """Convert an operating system's error to one of ours."""
    try:
        yield
    except OSError as exc:
        raise ours(says(exc), path=folder / name) from exc


def says(exc: OSError) -> str:
    """The operating system's own text, without the path."""
    return exc.strerror or type(exc).__name__
