"""The page in a real browser: live progress over a killed hub, and text that stays text."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine (apt-get install chromium)", allow_module_level=True)

ROWS = 60
HOSTILE = '<img src=x onerror="document.title=1">'
CSV = b"title,author\n" + "".join(f'"{n} {HOSTILE.replace(chr(34), chr(34) * 2)}",A\n' for n in range(ROWS)).encode()
# Every count and every state of the link the page shows, as it shows them.
WATCH = """
window.seen = []; window.links = [];
new MutationObserver(() => {
    const row = document.querySelector("#jobs tr");
    if (!row) return;
    seen.push(Number(row.dataset.done));
    links.push(row.cells[5].textContent);
}).observe(document.getElementById("jobs"), {subtree: true, childList: true, attributes: true, characterData: true});
"""


class Tab:
    """One page, by the browser's own remote control."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._calls = 0

    def evaluate(self, expression: str) -> Any:
        self._calls += 1
        parameters = {"expression": expression, "returnByValue": True}
        self._socket.send(json.dumps({"id": self._calls, "method": "Runtime.evaluate", "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=20))
            if answer.get("id") == self._calls:
                assert "exceptionDetails" not in answer["result"], answer
                return answer["result"]["result"].get("value")


@pytest.fixture
def open_tab(tmp_path: Path, eventually: Any) -> Iterator[Any]:
    profile = tmp_path / "profile"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with (tmp_path / "chromium.log").open("wb") as log:
        browser = subprocess.Popen([CHROMIUM, *options], stdout=log, stderr=log)
    with contextlib.ExitStack() as stack:

        def open_url(url: str) -> Tab:
            eventually(lambda: (profile / "DevToolsActivePort").exists())
            port = (profile / "DevToolsActivePort").read_text().split()[0]
            found = httpx.put(f"http://127.0.0.1:{port}/json/new?{url}", timeout=20).json()
            return Tab(stack.enter_context(connect(found["webSocketDebuggerUrl"], proxy=None, max_size=None)))

        try:
            yield open_url
        finally:
            browser.terminate()
            browser.wait(20)


@pytest.mark.timeout(120)
def test_live_progress_over_a_killed_hub(hub_process: Any, open_tab: Any, eventually: Any) -> None:
    hub = hub_process(row_delay=0.05)
    client = hub.start()
    tab = open_tab(f"{client.url}/")
    eventually(lambda: tab.evaluate("document.getElementById('notice')?.textContent") == "No jobs yet.")
    tab.evaluate(WATCH)
    assert client.start(CSV).status_code == 202
    eventually(lambda: (tab.evaluate("Math.max(0, ...seen)") or 0) >= 10)
    hub.kill()
    eventually(lambda: "reconnecting" in tab.evaluate("links"))
    hub.start()
    eventually(lambda: tab.evaluate("document.querySelector('#jobs tr').dataset.status") == "complete")
    seen = tab.evaluate("seen")
    assert seen == sorted(seen)
    assert seen[-1] == ROWS
    assert tab.evaluate("document.images.length") == 0
    assert tab.evaluate("document.title") == "Jobs"
    assert tab.evaluate("document.querySelector('#jobs tr').cells[1].textContent") == "csv_import"
    assert tab.evaluate("document.querySelectorAll('#jobs tr').length") == 1
