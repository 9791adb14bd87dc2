"""Measure the token store: a load with an opened key, and a save compared with its bare system calls.

    python benchmarks/storage.py [--folder DIR] [--rounds N]

Run it on the disk that you want to measure: a save costs about two fsyncs, which depend on the disk. Store calls and
bare calls take turns, so that both see the same disk. The output is medians and the spread of the middle half.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from towline._secret import Secret
from towline.storage import CallerKey, RecordKey, TokenStore
from towline.storage._record import Record, with_token
from towline.storage._vault import Vault

KEY = bytes(range(32))
TOKEN = Secret("t" * 64)
JOB = RecordKey("towline", "https://api.example:443/ws/progress", "j1")


def timed(call: Callable[[], object]) -> float:
    """The duration of a call in seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def report(what: str, seconds: list[float]) -> float:
    """Print the median in microseconds and return it."""
    low, median, high = (1e6 * part for part in statistics.quantiles(seconds, n=4))
    print(f"{what:<44} {median:9.1f} µs   (middle half {low:.1f} to {high:.1f})")
    return median


def bare_write(folder: Path) -> None:
    """Write a record's bytes so that they survive a power cut, and nothing else: the minimum for any store."""
    fd = os.open(folder / "bare.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, bytes(316))
    os.fsync(fd)
    os.close(fd)
    (folder / "bare.tmp").rename(folder / "bare")
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to create the store; by default the folder for temporaries")
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as root:
        measure(Path(root), arguments.rounds)


def measure(folder: Path, rounds: int) -> None:
    """Loads, then saves."""

    def edit(old: Record | None) -> Record:
        return with_token(old, JOB, token=TOKEN, expires=None, parameters=None, secrets=None, now=time.time())

    vault = Vault(folder / "tokens", app="bench", provider=CallerKey(KEY), now=time.time)
    opening = timed(lambda: vault.change(JOB, edit, begin=True))
    print(f"{'first save: folder, keyset, record':<44} {1e6 * opening:9.1f} µs")
    report("load, with an opened key", [timed(lambda: vault.read(JOB)) for _ in range(rounds * 10)])
    for backend in ("asyncio", "trio"):
        report(f"... with the hop to a thread, {backend}", anyio.run(loads, folder, rounds, backend=backend))
    bare_write(folder)
    saves, bares = [], []
    for _ in range(rounds):
        saves.append(timed(lambda: vault.change(JOB, edit, begin=True)))
        bares.append(timed(lambda: bare_write(folder)))
    save = report("save", saves)
    bare = report("write, fsync, rename, fsync alone", bares)
    # If other programs use the disk too, the lower quartiles are the least disturbed pairs.
    quiet = statistics.quantiles(saves, n=4)[0] / statistics.quantiles(bares, n=4)[0]
    print(f"{'a save costs':<44} {save / bare:9.2f} × by the medians, {quiet:.2f} × by the lower quartiles")


async def loads(folder: Path, rounds: int) -> list[float]:
    """Loads through the async interface, as a program makes them."""
    store = TokenStore(folder / "tokens", provider=CallerKey(KEY))
    taken = []
    for _ in range(rounds * 3):
        start = time.perf_counter()
        await store.read(JOB)
        taken.append(time.perf_counter() - start)
    return taken


if __name__ == "__main__":
    main()
