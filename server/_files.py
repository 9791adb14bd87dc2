"""The hub's files: one folder a job, with its upload until it ends and a large result afterwards.

What the log says is there must be there, so files and folders are forced to the disk before the log speaks of them.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

RESULT_FILE: Final = "result.json"
UPLOAD_FILE: Final = "upload"
UPLOAD_NAME_FILE: Final = "upload.name"
_INCOMING: Final = "incoming-"
_OURS: Final = re.compile(rf"({_INCOMING})?[0-9a-f]{{32}}")  # a job's id is as long


def make_incoming_folder(files: Path) -> Path:
    """Make a folder for an upload that is not yet a job's; what is left of it is removed at the next start."""
    files.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = files / f"{_INCOMING}{secrets.token_hex(16)}"
    folder.mkdir(mode=0o700)
    return folder


def adopt_upload(incoming: Path, files: Path, job_id: str, name: str | None) -> None:
    """Make an incoming folder with a whole upload the job's own."""
    (incoming / UPLOAD_NAME_FILE).write_text(name or "", encoding="utf-8", errors="replace")
    for path in (incoming / UPLOAD_FILE, incoming / UPLOAD_NAME_FILE):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    _sync_folder(incoming)
    incoming.rename(files / job_id)
    _sync_folder(files)


def keep_result(written: Path, folder: Path) -> None:
    """Make a file that was written in the job's folder its result."""
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    written.replace(folder / RESULT_FILE)
    _sync_folder(folder)


def clear_job_folder(folder: Path) -> None:
    """Remove what an ended job needs no more: all but its large result. What cannot be removed stays."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name == RESULT_FILE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # the result is still in it
            folder.rmdir()


def remove_job_folder(folder: Path) -> None:
    """Remove a job's folder, result and all."""
    shutil.rmtree(folder, ignore_errors=True)


def job_folders(files: Path, *, untouched_for: float) -> list[str]:
    """The names of the folders that nobody has touched for so many seconds: jobs' and uploads that never became one.

    What has another name is somebody else's, and left alone.
    """
    before = time.time() - untouched_for
    try:
        folders = [folder for folder in files.iterdir() if _OURS.fullmatch(folder.name)]
        return [folder.name for folder in folders if folder.stat().st_mtime <= before]
    except FileNotFoundError:
        return []


def _sync_folder(folder: Path) -> None:
    # Windows has no way to force a folder's entries; its file systems keep them in a journal.
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
