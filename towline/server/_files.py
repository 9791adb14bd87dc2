"""The hub's files: one folder per job, with its upload until it ends and a large result afterwards.

Files and folders are forced to the disk before the log refers to them. A folder whose job the log does not know goes to
`trash/` and is removed a day later.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from .._exceptions import HubStorageError

RESULT_FILE: Final = "result.json"
UPLOAD_FILE: Final = "upload"
UPLOAD_NAME_FILE: Final = "upload.name"
IDENTITY_FILE: Final = "hub-id"
_TRASH: Final = "trash"
_INCOMING: Final = "incoming-"
_OURS: Final = re.compile(rf"({_INCOMING})?[0-9a-f]{{32}}")  # a job's id is as long


def read_identity(files: Path) -> str | None:
    """Read the id of the folder of files; None if it has none, or is no folder."""
    try:
        return (files / IDENTITY_FILE).read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise HubStorageError(error.strerror or str(error), path=files) from error


def write_identity(files: Path, identity: str) -> str:
    """Give the folder an id, and make the folder if it is not there. Returns the id that another hub was first with."""
    try:
        files.mkdir(parents=True, exist_ok=True, mode=0o700)
        written = files / f"{IDENTITY_FILE}.{secrets.token_hex(4)}"
        with written.open("x", encoding="ascii") as file:
            file.write(f"{identity}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(written, files / IDENTITY_FILE)  # fails if it is there, and is never seen half written
        except FileExistsError:
            pass
        finally:
            written.unlink()
        _sync_folder(files)
    except OSError as error:
        raise HubStorageError(error.strerror or str(error), path=files) from error
    return read_identity(files) or identity


def make_incoming_folder(files: Path, identity: str) -> Path:
    """Make a folder for an upload that is not a job yet; what is left of it goes to the trash at the next start.

    Raises `OSError` if the folder of files is not the one with this id: a disk that is not mounted gets no uploads.
    """
    if read_identity(files) != identity:
        raise FileNotFoundError(errno.ENOENT, "the folder of files is not the one the hub started with", str(files))
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


def count_jobs(files: Path) -> int:
    """Count the folders of jobs; `HubStorageError` if the folder of files cannot be read."""
    try:
        return sum(not name.startswith(_INCOMING) for name in job_folders(files))
    except OSError as error:
        raise HubStorageError(error.strerror or str(error), path=files) from error


def move_to_trash(files: Path, name: str, at: int) -> None:
    """Move a job's folder to the trash at this moment, in milliseconds since 1970. What cannot be moved stays."""
    with suppress(OSError):
        (files / _TRASH).mkdir(mode=0o700, exist_ok=True)
        (files / name).rename(files / _TRASH / f"{name}.{at}")


def empty_trash(files: Path, before: int) -> None:
    """Remove what was moved to the trash before this moment."""
    try:
        found = [path for path in (files / _TRASH).iterdir() if _OURS.fullmatch(path.stem)]
    except FileNotFoundError:
        return
    for path in found:
        if path.suffix[1:].isdecimal() and int(path.suffix[1:]) < before:
            remove_job_folder(path)


def job_folders(files: Path, *, before: float = math.inf) -> list[str]:
    """Give the names of the folders last changed before a moment, in seconds since 1970: of jobs, and of uploads.

    Everything with another name belongs to another program and is left alone.
    """
    try:
        folders = [folder for folder in files.iterdir() if _OURS.fullmatch(folder.name)]
        return [folder.name for folder in folders if folder.stat().st_mtime < before]
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
