"""Servers to follow, in a process of their own or in memory; and the canary.

The canary is a token planted at the start of the run, which must be found nowhere at its end. Every token that a hub
in this process gives out carries it. Looked at are: what Towline logs at DEBUG, what tests print, the reports of
failures with their tracebacks, the arguments and the environment of every child, and every file that the run leaves
behind. `test_canary.py` looks at the public objects too.
"""

from __future__ import annotations

import logging
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from towline import Connection
from towline.protocols import Towline
from towline.server import _tokens
from towline.testing import ScriptedServer, controlled

# Neither the time of an example nor that of its draws is a finding: both depend on the machine.
settings.register_profile("towline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("towline")

CANARY = f"canary{secrets.token_hex(8)}"
FOUND: list[str] = []
_LARGEST_FILE = 16 << 20


class _Log(logging.Handler):
    """Looks at each record as a log file would show it, and at what hangs on it."""

    def emit(self, record: logging.LogRecord) -> None:
        shown = f"{self.format(record)} {vars(record)!r}"
        if CANARY in shown:
            FOUND.append(f"the log of {record.name}: {record.msg!r}")


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system") and CANARY in repr(arguments):
        FOUND.append(f"the arguments or the environment of a child: {event} {arguments[0]!r}")


class _Minted:
    """Stands in for `secrets` where the hub makes tokens."""

    @staticmethod
    def token_urlsafe(size: int) -> str:
        return f"{CANARY}{secrets.token_urlsafe(size)}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Every phase of every test."""
    if any(CANARY in text for text in (report.longreprtext, *(text for _, text in report.sections))):
        FOUND.append(f"the report of {report.nodeid}")


@pytest.fixture(scope="session", autouse=True)
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The planted token."""
    log = logging.getLogger("towline")
    handler = _Log(logging.DEBUG)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    sys.addaudithook(_audit)  # it cannot be taken away again; it only looks
    plain = _tokens.secrets
    _tokens.secrets = _Minted  # type: ignore[assignment]
    yield CANARY
    _tokens.secrets = plain
    log.removeHandler(handler)
    log.setLevel(level)
    FOUND.extend(f"the file {path}" for path in _files(tmp_path_factory.getbasetemp()) if _holds(path))
    assert FOUND == []


@pytest.fixture(scope="session", autouse=True)
def _home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no child of one, finds the developer's own store, key or keyring."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
        for name in ("TOWLINE_KEY", "TOWLINE_STORE", "TOWLINE_TOKEN", "CREDENTIALS_DIRECTORY"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a hub that `towline serve` runs, with the module's `ROW_DELAY` in seconds."""
    command = [sys.executable, "-P", "-m", "towline", "serve", "--port", "0"]
    command += ["--database", str(tmp_path_factory.mktemp("hub") / "hub.db")]
    command += ["--row-delay", str(getattr(request.module, "ROW_DELAY", 0.01))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()
        assert process.wait(120) == 0


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """A scripted server in memory with the job `j1`, whose token is `t1`."""
    async with ScriptedServer() as scripted:
        scripted.job("j1", token="t1")
        yield scripted


@pytest.fixture
def follow() -> Callable[..., Connection]:
    """A connection to the job `j1` of a scripted server; `own` are parameters of the protocol."""

    def follow(
        server: ScriptedServer,
        *,
        url: str = "ws://hub/ws/progress",
        job: str = "j1",
        own: Mapping[str, Any] | None = None,
        wall_time: Callable[[], float] | None = None,
        **options: Any,
    ) -> Connection:
        target = url if own is None else Towline(url, job, **own)
        options = {"token": "t1", "network": server.network, **options}
        return controlled(Connection(target, job=job, **options), wall_time=wall_time)

    return follow


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def _holds(path: Path) -> bool:
    try:
        return path.stat().st_size <= _LARGEST_FILE and CANARY.encode() in path.read_bytes()
    except OSError:  # a test took its own right to read it away
        return False
