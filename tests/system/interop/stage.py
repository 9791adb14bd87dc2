"""Where a scene is played: a server, perhaps a proxy in front of it, and the jobs' folder."""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import trustme

from towline.statemachine import Policy

from .follower import QUICK, Follower, Job
from .process import Process
from .proxies import Proxy
from .servers import Server


@dataclass(frozen=True)
class Setup:
    """What a scene needs. `timeout`: what the proxy gives a silent backend or an idle socket, in seconds."""

    behind: Proxy | None = None
    timeout: float = 30.0
    tls: bool = False


@dataclass
class Stage:
    """A server that runs, perhaps behind a proxy, with its jobs in a folder."""

    setup: Setup
    server: Server
    folder: Path
    backend: Process
    proxy: Process | None
    ssl: ssl_module.SSLContext | None

    def follower(self, policy: Policy = QUICK, *, job: str = "job") -> Follower:
        """A follower of a job that has just begun."""
        port = self.backend.port if self.proxy is None else self.proxy.port
        url = f"ws://127.0.0.1:{port}/ws/progress" if self.ssl is None else f"wss://localhost:{port}/ws/progress"
        return Follower(url, Job(self.folder, job), policy, self.ssl)


@asynccontextmanager
async def built(setup: Setup, server: Server, folder: Path) -> AsyncIterator[Stage]:
    """Start server and proxy, and end them."""
    await anyio.Path(folder).mkdir()
    backend = server.process(folder)
    proxy: Process | None = None
    context: ssl_module.SSLContext | None = None
    if setup.behind is not None:
        certificate: Path | None = None
        if setup.tls:
            authority, certificate = trustme.CA(), folder / "certificate.pem"
            authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
            context = ssl_module.create_default_context()
            authority.configure_trust(context)
        proxy = setup.behind.process(folder, backend.port, timeout=setup.timeout, certificate=certificate)
    try:
        await anyio.to_thread.run_sync(backend.start)
        if proxy is not None:
            await anyio.to_thread.run_sync(proxy.start)
        yield Stage(setup, server, folder, backend, proxy, context)
    finally:
        if proxy is not None:
            proxy.end()
        backend.end()
