"""A file that is written after long work, and opened before it: one that cannot be written is told of at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_file(path: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Yield what writes it, or nothing at all without a path. What is there stays until then. Raises `OSError`."""
    if path is None:
        yield lambda data: None
        return
    with path.open("ab") as file:

        def write(data: bytes) -> None:
            if file.seekable():  # a pipe is not, and has nothing in it
                file.truncate(0)
            file.write(data)
            file.flush()

        yield write
