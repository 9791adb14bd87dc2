"""`python -OO` and many frozen programs drop docstrings: they are for people and pictures, and nothing needs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FOLLOW = """
import sys, towline, towline.server, towline.host, towline.blocking
from towline.testing import ScriptedServer, run_virtual

async def main():
    async with ScriptedServer() as server:
        server.job("j1", token="t1").complete({"books": [], "errors": [], "successRate": "0/0"})
        async with towline.Connection(
            "ws://hub/ws/progress", job="j1", token="t1", network=server.network
        ) as line:
            return await line.result()

assert False, "asserts are dropped too"
print(type(run_virtual(main, backend=sys.argv[1])).__name__)
"""

HELP = """
import json, sys
from towline.cli._app import app
from typer.main import get_command

def texts(name, command):
    yield name, command.get_short_help_str(1000)
    for sub, each in getattr(command, "commands", {}).items():
        yield from texts(f"{name} {sub}", each)

print(json.dumps(dict(texts("towline", get_command(app)))))
"""


def python(*arguments: str) -> str:
    answer = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=250, check=False)
    assert (answer.returncode, answer.stderr) == (0, ""), arguments
    return answer.stdout


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_job_is_followed(backend: str) -> None:
    assert python("-OO", "-c", FOLLOW, backend) == "JobComplete\n"


def test_every_command_has_the_same_help() -> None:
    without = json.loads(python("-OO", "-c", HELP))
    assert without == json.loads(python("-c", HELP))
    assert all(without.values())
    assert len(without) > 15


def test_help_of_the_command() -> None:
    assert "Follow a job to its end" in python("-OO", "-m", "towline", "--help")


def test_a_picture_without_its_words_is_not_made() -> None:
    """Compared with the files there, it would look like a change of the machine."""
    for arguments in (["diagram", "--check", "--out", "docs/machine"], ["diagram", "diff", "HEAD"]):
        answer = subprocess.run(
            [sys.executable, "-OO", "-m", "towline", *arguments],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert (answer.returncode, answer.stdout) == (2, "")
        assert "without -OO" in answer.stderr
