"""The transport's figures in full: the short cut against wsproto, and hostile bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "transport"


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("file", "test", "setting"),
    [
        ("test_framing.py", "means_what_wsproto_means", {"TOWLINE_SOAK_STREAMS": "500000"}),
        ("test_hostile.py", "mutated", {"TOWLINE_SOAK_HOSTILE": "1000000"}),
    ],
)
def test_every_figure_is_reached(file: str, test: str, setting: dict[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--timeout",
        "7200",
        "-p",
        "no:cacheprovider",
        TESTS / file,
        "-k",
        test,
    ]
    done = subprocess.run(command, env={**os.environ, **setting}, capture_output=True, text=True)
    print(done.stdout)  # noqa: T201 - `make soak` prints its figures
    assert done.returncode == 0, done.stdout[-5000:]
