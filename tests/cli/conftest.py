"""A way to call `towline` as a person does."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def towline(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "towline", *arguments]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing of the user's is read or written."""
    return {
        **os.environ,
        "TOWLINE_KEY": base64.b64encode(bytes(range(32))).decode(),
        "TOWLINE_STORE": str(tmp_path / "tokens"),
    }


@pytest.fixture
def begin(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Start `towline` and let it run."""
    return lambda *arguments: subprocess.Popen(
        towline(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Call `towline` and wait for it."""

    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            towline(*arguments), env={**environment, **variables}, capture_output=True, text=True, timeout=50
        )
        assert "Traceback" not in answer.stderr
        return answer

    return call
