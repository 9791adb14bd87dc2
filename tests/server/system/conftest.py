"""The Cloudflare example, run by the real workerd with its objects' storage in a folder of the test's own."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from towline.testing import LoggedEvent

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "cloudflare"
PROGRAMS = Path(os.environ.get("TOWLINE_NODE_MODULES", ROOT / ".venv" / "node" / "node_modules")) / ".bin"
START_KEY = "start-key-of-the-tests"


class Workerd:
    """A workerd on the example's own configuration, with other numbers where a test needs them. It can be killed and
    started again on the same port and storage."""

    def __init__(self, folder: Path, variables: dict[str, Any], main: Path) -> None:
        text = re.sub(r"^\s*//.*$", "", (EXAMPLE / "wrangler.jsonc").read_text(), flags=re.MULTILINE)
        settings = json.loads(text)
        settings["main"] = str(main)
        settings["vars"] |= {"START_KEY": START_KEY, **variables}
        self.folder = folder
        self.port = 0
        self._config = folder / "wrangler.jsonc"
        self._config.write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        told, telling = os.pipe()
        command = [str(PROGRAMS / "workerd"), "serve", str(self._config), "--verbose", f"--control-fd={telling}"]
        command.append(f"--socket-addr=http=127.0.0.1:{self.port}")
        environment = {**os.environ, "WORKERD_ESBUILD": str(PROGRAMS / "esbuild")}
        with (self.folder / "workerd.log").open("ab") as log, os.fdopen(told) as words:
            try:
                self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, pass_fds=[telling])
            finally:
                os.close(telling)
            for line in words:
                message = json.loads(line)
                if message["event"] == "listen":
                    self.port = message["port"]
                    return
        raise AssertionError(self.log())

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def log(self) -> str:
        return (self.folder / "workerd.log").read_text()

    def files(self) -> list[Path]:
        """What the objects have on disk."""
        return [path for path in (self.folder / ".wrangler" / "state").rglob("*") if path.is_file()]

    def events(self, job: str) -> list[dict[str, Any]]:
        """The job's log as it is on disk, whether workerd runs or not."""
        [path] = [path for path in self.files() if path.name == f"{job}.sqlite"]
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return [json.loads(text) for (text,) in database.execute("SELECT text FROM event ORDER BY seq")]

    def logged(self, job: str) -> list[LoggedEvent]:
        """The same, to hold a follower's updates against."""
        return [LoggedEvent(event["epoch"], event["seq"], 0.0, event["type"], "") for event in self.events(job)]


@pytest.fixture(scope="session")
def workerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Workerd]]:
    """Serve the example: `workerd(SLICE_PAUSE_MS=20)`."""
    if not all((PROGRAMS / name).exists() for name in ("workerd", "esbuild")):
        pytest.skip("no workerd and esbuild in .venv/node (make test-system)")
    made: list[Workerd] = []

    def make(main: Path = EXAMPLE / "src" / "worker.js", **variables: Any) -> Workerd:
        made.append(Workerd(tmp_path_factory.mktemp("workerd"), variables, main))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture(scope="session")
def start_key() -> dict[str, str]:
    """What a request needs to start a job."""
    return {"authorization": f"Bearer {START_KEY}"}
