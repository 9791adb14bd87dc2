"""An error that no command expects is nothing of the above: no failed job, no wrong usage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from towline.cli._exit import ExitCode

Run = Callable[..., subprocess.CompletedProcess[str]]

#: Break something deep inside, then run the command line.
BROKEN = """
import sys
import {module} as module
def broken(*arguments, **options):
    raise {error}
{target} = broken
sys.argv = ["towline", *{arguments!r}]
from towline.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "target", "arguments"),
    [
        ("towline.storage._vault", "module.Vault.verify", ["tokens", "list"]),
        ("towline.engine.engine", "module.Engine.start", ["watch", "j1", "--url", "ws://127.0.0.1:9/ws/progress"]),
        ("towline.statemachine", "module.markdown", ["diagram", "--format", "md"]),
    ],
)
@pytest.mark.parametrize("error", ["RuntimeError('deep inside')", "BaseExceptionGroup('deep inside', [SystemExit(1)])"])
def test_an_unexpected_error(
    environment: dict[str, str], module: str, target: str, arguments: list[str], error: str
) -> None:
    program = BROKEN.format(module=module, target=target, arguments=arguments, error=error)
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "TOWLINE_TOKEN": "t1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert answer.returncode == ExitCode.UNEXPECTED == 70
    assert "Traceback" in answer.stderr
    assert "deep inside" in answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("towline: this error is a bug in Towline")


def test_without_its_extra_it_says_so(environment: dict[str, str]) -> None:
    program = "import sys; sys.modules['typer'] = None; from towline.cli import main; main()"
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == "towline: the command line needs its extra: pip install 'towline[cli]'\n"


def test_an_address_in_use_is_no_failed_job(run: Run, hub: str, tmp_path: object) -> None:
    answer = run("serve", "--port", hub.rpartition(":")[2], "--database", f"{tmp_path}/hub.db")
    assert answer.returncode == 5
    assert "in use" in answer.stderr


def test_help_names_every_code(run: Run) -> None:
    told = " ".join(run("--help").stdout.split())
    assert all(f"{code.value} " in told.partition("Exit codes:")[2] for code in ExitCode)
