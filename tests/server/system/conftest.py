"""The Cloudflare example, run by the real workerd with its objects' storage in a folder of the test's own; and a real
Chromium, by its own remote control.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from towline.testing import LoggedEvent

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "cloudflare"
PROGRAMS = Path(os.environ.get("TOWLINE_NODE_MODULES", ROOT / ".venv" / "node" / "node_modules")) / ".bin"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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


class Tab:
    """One page. `errors` are its uncaught errors and what its Content Security Policy has blocked."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._calls = 0
        self.errors: list[str] = []
        self.call("Runtime.enable")
        self.call("Log.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Make one call of the DevTools protocol."""
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(message["params"]["exceptionDetails"]))
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["source"] == "security":
                self.errors.append(message["params"]["entry"]["text"])
            if message.get("id") == self._calls:
                assert "result" in message, message
                return message["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys, as a person does: the name of a key, or one character."""
        named = {"Tab": 9, "Enter": 13, "Escape": 27}
        for key in keys:
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            code = named.get(key, ord(key[0].upper()))
            event = {"key": key, "windowsVirtualKeyCode": code, "text": text}
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def show_as(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Show the page on a screen of this size, in a light or dark scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def save_screenshot(self, path: Path) -> None:
        """Save what the screen shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@pytest.fixture(scope="session")
def browser_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The DevTools port of a browser with a fresh profile."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    profile = tmp_path_factory.mktemp("chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen([CHROMIUM, *options], stderr=subprocess.PIPE, text=True)
    assert browser.stderr is not None
    try:
        line = next(line for line in browser.stderr if "DevTools listening on" in line)
        # It writes on, and must not be stopped by a full pipe.
        reader = threading.Thread(target=browser.stderr.read)
        reader.start()
        yield int(line.rpartition(":")[2].partition("/")[0])
    finally:
        browser.terminate()
        browser.wait(20)
        reader.join(20)
        browser.stderr.close()


@pytest.fixture
def open_tab(browser_port: int) -> Iterator[Callable[..., Tab]]:
    """Open a URL in a new tab: `open_tab(url)`; the script `first` runs before the page's own."""
    base = f"http://127.0.0.1:{browser_port}/json"
    opened: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_url(url: str, first: str = "") -> Tab:
            found = httpx.put(f"{base}/new?about:blank", timeout=20).json()
            opened.append(found["id"])
            tab = Tab(stack.enter_context(connect(found["webSocketDebuggerUrl"], proxy=None, max_size=None)))
            tab.call("Page.enable")
            tab.call("Page.addScriptToEvaluateOnNewDocument", source=first)
            tab.call("Page.navigate", url=url)
            return tab

        yield open_url
        for tab_id in opened:
            httpx.get(f"{base}/close/{tab_id}", timeout=20)
