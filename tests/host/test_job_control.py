"""Ctrl-Z and `fg`, with real signals to a real process."""

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
    await anyio.sleep(0)
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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_parted_then_stopped_then_back(backend: str) -> None:
    command = [sys.executable, "-c", PROGRAM, backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            for _ in range(2):
                process.send_signal(signal.SIGTSTP)
                assert process.stdout.readline() == "parted\n"
                deadline = time.monotonic() + 10
                while not is_stopped(process.pid):
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                process.send_signal(signal.SIGCONT)
                assert process.stdout.readline() == "back\n"
        finally:
            process.kill()
