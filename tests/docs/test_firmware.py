"""The example in examples/firmware: on a real device of its own, also after a kill; and the page that explains it."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from towline.cli.machine._diagram import _check, pictures
from towline.statemachine import describe
from towline.testing import FakeWorld, lifecycle_tests

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "firmware"
PAGE = ROOT / "docs" / "own-lifecycle.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)
IMAGE = b"a new version"
BACKENDS = ["asyncio", "trio"]
FIRMWARE = runpy.run_path(str(EXAMPLE / "firmware.py"))

test_the_table = lifecycle_tests(FIRMWARE["FIRMWARE"], FakeWorld(FIRMWARE["Update"]("", "")))


@pytest.fixture(scope="module", autouse=True)
def example() -> Iterator[None]:
    """Import the example's modules, as its programs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        yield
    for name in ("device", "firmware", "install"):
        sys.modules.pop(name, None)


@pytest.fixture
def device() -> Iterator[Any]:
    from device import Device

    with Device() as device:
        thread = threading.Thread(target=device.serve_forever, args=(0.01,))
        thread.start()
        yield device
        device.open.set()
        device.shutdown()
        thread.join()


@pytest.fixture
def update(device: Any, tmp_path: Path) -> Any:
    from firmware import Update

    (tmp_path / "image.bin").write_bytes(IMAGE)
    return Update(f"http://127.0.0.1:{device.server_port}", str(tmp_path / "image.bin"), pause=0.01, probation=0.05)


def run(update: Any, folder: Path, backend: str) -> list[list[str]]:
    """Install, and return the words of each line of the recorded run, without its time."""
    from install import install

    timeline = anyio.run(install, update, folder / "update.json", backend=backend)
    return [line.split()[2:] for line in timeline.splitlines()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_is_installed(device: Any, update: Any, tmp_path: Path, backend: str) -> None:
    assert [line[0] for line in run(update, tmp_path, backend)] == ["install", "done", "done", "done", "probation_over"]
    assert device.running == IMAGE
    assert device.asked == ["PUT /image", "POST /activate"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_that_is_busy_is_asked_again(device: Any, update: Any, tmp_path: Path, backend: str) -> None:
    device.failures = 2
    events = [line[0] for line in run(update, tmp_path, backend)]
    assert events[:5] == ["install", "failed", "retry_due", "failed", "retry_due"]
    assert device.running == IMAGE


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_that_stays_busy_keeps_its_version(device: Any, update: Any, tmp_path: Path, backend: str) -> None:
    device.failures = 100
    assert run(update, tmp_path, backend)[-1] == ["failed", "uploading", "→", "kept", "count"]
    assert (device.running, len(device.asked)) == (b"old", 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_version_that_does_not_work_is_rolled_back(device: Any, update: Any, tmp_path: Path, backend: str) -> None:
    (tmp_path / "image.bin").write_bytes(b"broken")
    # The first answer about its health ends a probation, however long.
    events = [line[0] for line in run(replace(update, probation=1000.0), tmp_path, backend)]
    assert events[-2:] == ["unhealthy", "done"]
    assert device.running == b"old"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_update_goes_on_after_a_kill(device: Any, update: Any, tmp_path: Path, backend: str) -> None:
    device.open.clear()
    command = [sys.executable, EXAMPLE / "install.py", update.device, update.image, "0.05"]
    with subprocess.Popen(command, cwd=tmp_path) as program:
        assert device.reached.wait(120), "the upload did not begin"
        program.kill()
    device.open.set()
    assert run(update, tmp_path, backend)[0] == ["done", "uploading", "→", "verifying", "verify"]
    assert device.running == IMAGE
    assert device.asked == ["PUT /image", "PUT /image", "POST /activate"]


def test_the_committed_pictures_are_what_the_table_says() -> None:
    from firmware import FIRMWARE

    assert _check(pictures(describe(FIRMWARE)), EXAMPLE / "machine") == 0


def test_the_domain_stays_small() -> None:
    assert len((EXAMPLE / "firmware.py").read_text("utf-8").splitlines()) <= 120


def test_the_page_shows_the_example_and_does_what_it_says(device: Any, update: Any, tmp_path: Path) -> None:
    """A block that stands in the example is shown; any other block runs, and prints the text that follows it."""
    sources = [path.read_text("utf-8") for path in EXAMPLE.glob("*.py")]
    namespace: dict[str, Any] = {"__name__": "own_lifecycle", "update": update, "folder": tmp_path}
    printed, shown, texts = "", 0, 0
    for kind, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if kind == "text":
            texts += 1
            assert printed.strip() == text.strip()
            printed = ""
            continue
        assert not printed.strip(), "what a block prints must stand below it"
        if any(text in source for source in sources):
            shown += 1
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, str(PAGE), "exec"), namespace)
        printed = out.getvalue()
    assert not printed.strip()
    assert (shown, texts) == (5, 4)
