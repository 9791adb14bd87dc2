"""A snapshot in a file, for one runner at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from .._exceptions import InvalidArgument

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class SnapshotFile:
    """Reads and replaces the file at `path`; a lock file next to it keeps a second runner out, of any process.

    A write is on the disk when it returns. A kill or a loss of power leaves the old snapshot or the new one.
    """

    def __init__(self, path: str | Path) -> None:
        self._path: Final = Path(path)
        self._lock = os.open(self._beside(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if sys.platform == "win32":
                msvcrt.locking(self._lock, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise InvalidArgument("file", f"another runner uses {path}; wait for its end") from error

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    def read(self) -> bytes | None:
        """The snapshot, or None if there is none yet."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, saved: bytes) -> None:
        """Replace the snapshot."""
        new = self._beside(".new")
        with new.open("wb") as file:
            file.write(saved)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        # Windows has no way to force a folder's entries; its file systems keep them in a journal.
        if sys.platform != "win32":
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Release the lock; its empty file stays, because another runner may have opened it already."""
        os.close(self._lock)
