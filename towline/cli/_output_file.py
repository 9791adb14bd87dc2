"""An output file that is opened before long work, so that a path that cannot be written fails at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_file(path: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes the file (without a path, it does nothing). Old content stays until it is called.

    Raises `OSError` if the file cannot be opened.
    """
    if path is None:
        yield lambda data: None
        return
    with path.open("ab") as file:

        def write(data: bytes) -> None:
            if file.seekable():  # a pipe is not, and cannot be truncated
                file.truncate(0)
            file.write(data)
            file.flush()

        yield write
