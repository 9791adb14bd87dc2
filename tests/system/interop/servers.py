"""The servers, as data: how each is started, and what of it must be there."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from .app import EVENTS
from .process import Process, free_port

HERE: Final = Path(__file__).parent
NODE_MODULES: Final = Path(os.environ.get("TOWLINE_NODE_MODULES", HERE.parents[2] / ".venv/node/node_modules"))


@dataclass(frozen=True)
class Server:
    """A server that `app.py` runs on.

    `bare_403`: it can refuse an upgrade by a 403 without headers and body only. `few_closes`: of the close codes below
    3000 it sends 1000 only, and 1011 for all others.
    """

    title: str
    part: str
    command: str
    bare_403: bool = False
    few_closes: bool = False

    def missing(self) -> str | None:
        """What is not here."""
        if self.command.startswith("node "):
            there = shutil.which("node") is not None and (NODE_MODULES / self.part).is_dir()
            return None if there else f"no node, or no {self.part} in {NODE_MODULES}"
        return None if find_spec(self.part) is not None else f"{self.part} is not installed"

    def version(self) -> str:
        """What is here of it, with its version."""
        if self.command.startswith("node "):
            package = json.loads((NODE_MODULES / self.part / "package.json").read_text())
            return f"{self.part} {package['version']}"
        return f"{self.part} {metadata.version(self.part)}"

    def process(self, folder: Path) -> Process:
        """The server for the jobs in `folder`, not yet started."""
        port = free_port()
        words = self.command.format(port=port).split()
        # In one process, without a shell, so that a signal meant for the server meets the server.
        command = words if words[0] == "node" else [sys.executable, "-m", *words]
        environment = {"JOBS": str(folder), "EVENTS": str(EVENTS), "NODE_PATH": str(NODE_MODULES)}
        return Process(command, port, folder, {**environment, "PYTHONPATH": str(HERE.parent)})


#: In front of it stand the proxies. It sends no pings: what keeps an idle socket there is for the engine to do.
BACKEND: Final = Server(
    "uvicorn",
    "uvicorn",
    "uvicorn --no-access-log --timeout-graceful-shutdown 1 --ws-ping-interval 60 --port {port} interop.app:app",
)
# All that can ping do so every second or oftener, and hang up on a client that does not answer.
_UVICORN: Final = (
    "uvicorn --no-access-log --timeout-graceful-shutdown 1 --ws-ping-interval 0.5 --ws-ping-timeout 2"
    " --port {port} interop.app:app --ws"
)
_HYPERCORN: Final = (
    "hypercorn --graceful-timeout 1 --websocket-ping-interval 1 --bind 127.0.0.1:{port} interop.app:app --worker-class"
)
SERVERS: Final = (
    Server("uvicorn, `websockets`", "uvicorn", f"{_UVICORN} websockets"),
    Server("uvicorn, `websockets-sansio`", "uvicorn", f"{_UVICORN} websockets-sansio"),
    Server("uvicorn, wsproto", "uvicorn", f"{_UVICORN} wsproto"),
    Server("hypercorn, asyncio", "hypercorn", f"{_HYPERCORN} asyncio"),
    Server("hypercorn, trio", "hypercorn", f"{_HYPERCORN} trio"),
    Server(
        "daphne",
        "daphne",
        "daphne --ping-interval 1 --ping-timeout 2 -p {port} interop.app:app",
        bare_403=True,
        few_closes=True,
    ),
    Server("granian", "granian", "granian --interface asgi --ws --port {port} interop.app:app"),
    Server("aiohttp", "aiohttp", "interop.app aiohttp {port}"),
    Server("`websockets`", "websockets", "interop.app websockets {port}"),
    Server("tornado", "tornado", "interop.app tornado {port}"),
    Server("node, `ws`", "ws", f"node {HERE / 'ws.cjs'} {{port}}"),
)
