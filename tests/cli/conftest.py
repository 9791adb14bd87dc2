"""A hub of its own for the tests of the command line, and a way to call `towline` as a person does."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def towline(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "towline", *arguments]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a running hub."""
    database = tmp_path_factory.mktemp("hub") / "hub.db"
    command = towline("serve", "--port", "0", "--database", str(database), "--row-delay", "0.01")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        yield url
        process.terminate()
        assert process.wait(20) == 0


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
