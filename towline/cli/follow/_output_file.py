"""Output files that are opened before long work, so that a path that cannot be written fails at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..._facts import Received, Want
from ...protocols._shared.recording import Observer, dump_line


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


@contextmanager
def recording_file(path: Path | None) -> Iterator[Observer | None]:
    """Yield an observer that writes a recording which only its owner may read; None without a path.

    Raises `OSError` if the file cannot be opened. If it cannot be written later, raises that when the block ends: the
    job is followed all the same.
    """
    if path is None:
        yield None
        return
    failure: OSError | None = None
    # A new recording is private from its first byte, and a file that was there becomes private before it gets one.
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(opened, "w", encoding="utf-8", newline="\n", buffering=1) as file:  # noqa: PTH123 - a descriptor
        if hasattr(os, "fchmod"):
            os.fchmod(opened, 0o600)

        def observe(want: Want, received: Received) -> None:
            nonlocal failure
            if failure is None:
                try:
                    file.write(dump_line(want, received) + "\n")
                except OSError as error:
                    failure = error

        yield observe
    if failure is not None:
        raise failure
