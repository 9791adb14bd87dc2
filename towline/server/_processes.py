"""Several processes that serve one listening socket, and the parent that replaces those that die.

The parent does nothing else: it serves no client, and has no log. Its children are new interpreters, not copies of it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Final

logger: Final = logging.getLogger("towline.server")

_LOOK: Final = 0.5  # seconds until a signal is noticed, at most
_PAUSE: Final = 1.0  # seconds before a process is replaced, so that one that cannot live makes no busy loop


def run_processes(count: int, serve: Callable[[socket.socket], None], listener: socket.socket) -> None:
    """Run `serve(listener)` in `count` processes until SIGTERM or SIGINT, which all of them then get.

    Of these two, a signal that is ignored stays ignored.
    `serve` can be pickled, and ends at SIGTERM, at SIGINT in haste. Only for the main thread.
    """
    signals: list[int] = []

    def note(sig: int, frame: FrameType | None) -> None:
        signals.append(sig)

    heeded = [sig for sig in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(sig) is not signal.SIG_IGN]
    before = {sig: signal.signal(sig, note) for sig in heeded}
    processes: list[SpawnProcess] = []
    try:
        processes.extend(_start(serve, listener) for _ in range(count))
        while not signals:
            wait([process.sentinel for process in processes], _LOOK)
            for place, process in enumerate(processes):
                if not process.is_alive() and not signals:
                    logger.error("process %s died with exit code %s; another comes", process.pid, process.exitcode)
                    time.sleep(_PAUSE)
                    processes[place] = _start(serve, listener)
    finally:
        sent = 0
        while any(process.is_alive() for process in processes):
            # The first signal asks them to stop, another one to stop at once.
            if sent < max(1, len(signals)):
                sent += 1
                for process in processes:
                    _stop(process, in_haste=sent > 1)
            wait([process.sentinel for process in processes if process.is_alive()], _LOOK)
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _start(serve: Callable[[socket.socket], None], listener: socket.socket) -> SpawnProcess:
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(serve, listener))
    process.start()
    return process


def _stop(process: SpawnProcess, *, in_haste: bool) -> None:
    if in_haste and sys.platform != "win32" and process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGINT)
    else:
        process.terminate()


def _run(serve: Callable[[socket.socket], None], listener: socket.socket) -> None:
    if hasattr(os, "setpgrp"):  # an interrupt from the terminal is the parent's to pass on
        os.setpgrp()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    serve(listener)


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        signal.raise_signal(signal.SIGTERM)
