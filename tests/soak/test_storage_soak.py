"""The store's figures in full: each line of its promises, by the crash rig; and what the quick suite holds whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def promise(command: str, what: str, promised: str) -> object:
    return pytest.param(command, id=command, marks=pytest.mark.promises("store", what, promised))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "command",
    [
        promise("kill-random", "kill -9 while saving", "5,000 kills: 0 unreadable, 0 lost, at most one leftover"),
        promise("kill-each", "SIGKILL instead of each file-system call", "every call: 0"),
        promise("fail-each", "each call fails with ENOSPC, EIO, EROFS, EINTR, EACCES, EDQUOT", "every call x 6: 0"),
        promise("power-cut", "power cut after each operation", "all states: 0"),
        promise("flip-bits", "any bit flipped, any file cut short", "every byte: 0"),
        promise("swap", "records, files, key ids exchanged", "all pairs: 0 accepted"),
        promise("processes", "four processes at once", "4 x 1,000 saves: 0 lost, 0 errors"),
        promise("strace", "the kernel itself refuses or kills", "every case: 0"),
    ],
)
def test_every_figure_is_reached(command: str, count: Callable[[int], int], reached: Callable[..., None]) -> None:
    full = ["--full"] if count(5000) == 5000 else []
    arguments = [sys.executable, TESTS / "storage" / "rig.py", command, *full]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    first = figures.pop("first")
    reached(", ".join(f"{name} {value}" for name, value in figures.items() if name != "seconds"))
    assert figures["violations"] == 0, first


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "paths",
    [
        pytest.param(
            ["storage/test_folder.py", "storage/test_hidden.py"],
            id="quick suite",
            marks=pytest.mark.promises(
                "store", "modes under umask 000; symlink, FIFO, foreign owner, group-writable", "0600/0700; refused"
            ),
        ),
        pytest.param(
            ["."],
            id="whole quick suite",
            marks=pytest.mark.promises("store", "a canary token in log, repr, traceback, argv, file", "0 hits"),
        ),
    ],
)
def test_what_the_quick_suite_holds_whole(
    paths: list[str], count: Callable[[int], int], reached: Callable[..., None]
) -> None:
    """The canary is looked for at the end of a run, over all of it."""
    if paths == ["."] and count(100) < 100:
        paths = ["test_canary.py", "test_secret.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run([*command, *(TESTS / path for path in paths)], capture_output=True, text=True)
    reached(done.stdout.strip().splitlines()[-1].strip("= "))
    assert done.returncode == 0, done.stdout[-5000:]
