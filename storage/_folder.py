"""What the two implementations of a folder share, and what they promise. `_files` picks the one of this system."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from .._exceptions import ReadFailed, TokenStoreError, WriteFailed

PATIENCE: Final = 10.0  # seconds to wait for another process's lock; a holder needs milliseconds
TEMPORARY: Final = ".tmp"


class Stamp(NamedTuple):
    """Two equal stamps of one name mean the same file with the same content: files here are only ever replaced."""

    device: int
    inode: int
    size: int
    changed_ns: int


def never() -> None:
    """The `tick` of a call that nobody can cancel."""


def temporary_of(name: str) -> str:
    """The one temporary of a file: under the lock there is at most one writer, so at most one is ever left over."""
    return Path(name).stem + TEMPORARY


def take_lock(attempt: Callable[[], bool], *, exclusive: bool, path: Path, tick: Callable[[], None]) -> None:
    """Call `attempt` until it says that it has the lock. Polled, not blocking: `tick` may end the wait."""
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
            raise refusal(f"another process has held the lock for {PATIENCE:g} s", path=path)
        tick()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


@contextmanager
def renamed(ours: type[TokenStoreError], folder: Path, name: str = "") -> Iterator[None]:
    """The seam where an operating system's error becomes one of ours."""
    try:
        yield
    except OSError as exc:
        raise ours(says(exc), path=folder / name) from exc


def says(exc: OSError) -> str:
    """The operating system's own word, without the path."""
    return exc.strerror or type(exc).__name__
