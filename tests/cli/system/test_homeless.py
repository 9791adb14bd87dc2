"""A user without a home: a container, a service with a dynamic user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pwd")

NAMELESS = """
import pwd, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {{uid}}")
pwd.getpwuid = unknown
sys.argv = ["towline", *{arguments!r}]
from towline.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["watch", "j1"],
        ["watch", "j1", "--url", "ws://127.0.0.1:9/ws/progress"],
        ["tokens", "list"],
        ["tokens", "show", "j1"],
        ["tokens", "where"],
        ["tokens", "delete", "--all"],
    ],
    ids=" ".join,
)
def test_it_is_said_what_to_set(environment: dict[str, str], tmp_path: Path, arguments: list[str]) -> None:
    for name in [name for name in environment if name.startswith("XDG_")]:
        del environment[name]
    del environment["TOWLINE_STORE"]
    environment.pop("HOME", None)
    answer = subprocess.run(
        [sys.executable, "-P", "-c", NAMELESS.format(arguments=arguments)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert "--store or TOWLINE_STORE" in answer.stderr
    assert list(tmp_path.iterdir()) == [], "a folder called ~ is no home"
