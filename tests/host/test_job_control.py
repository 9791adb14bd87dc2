"""Ctrl-Z and `fg`, with real signals to a real process."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, anyio
from towline.host._job_control import watch_job_control

async def suspend():
    print("parting", flush=True)
    await anyio.sleep(0.2)
    print("parted", flush=True)

async def main():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_job_control, suspend, lambda: print("back", flush=True))
        await anyio.sleep(0.1)
        print("ready", flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend=sys.argv[1])
"""


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "T"


def wait_stopped(pid: int) -> None:
    deadline = time.monotonic() + 10
    while not is_stopped(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("presses", [1, 2])
def test_parted_then_stopped_then_back(backend: str, presses: int) -> None:
    """However often Ctrl-Z is pressed while the connection parts, one `fg` brings it back."""
    command = [sys.executable, "-c", PROGRAM, backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            for _ in range(2):
                process.send_signal(signal.SIGTSTP)
                assert process.stdout.readline() == "parting\n"
                for _ in range(presses - 1):
                    process.send_signal(signal.SIGTSTP)
                assert process.stdout.readline() == "parted\n"
                wait_stopped(process.pid)
                process.send_signal(signal.SIGCONT)
                assert process.stdout.readline() == "back\n"
        finally:
            process.kill()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no `unshare` on this machine")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_cannot_be_stopped_comes_back(backend: str) -> None:
    """The first process of a container: the kernel lets no SIGSTOP of its own stop it."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespace for processes can be had here")
    program = PROGRAM.replace(
        "await anyio.sleep_forever()", "os.kill(1, signal.SIGTSTP)\n        await anyio.sleep(30)"
    )
    command = [*alone, sys.executable, "-c", "import os, signal\n" + program, backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline() for _ in range(4)] == ["ready\n", "parting\n", "parted\n", "back\n"]
        finally:
            process.kill()
