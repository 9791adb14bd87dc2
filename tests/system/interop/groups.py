"""What is played where: the tables of docs/servers.md, with a row for each server or proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import anyio

from . import scenes
from .proxies import HAPROXY, NGINX, PROXIES, Proxy
from .scenes import Closed, Refused, Seen
from .servers import BACKEND, SERVERS, Server
from .stage import Setup, Stage, built

AS_IT_IS: Final = Setup()


@dataclass(frozen=True)
class Scene:
    """A column: what is played, and where."""

    title: str
    play: Callable[[Stage], Awaitable[Seen]]
    setup: Setup = AS_IT_IS


@dataclass(frozen=True)
class Table:
    """Scenes that are one table of docs/servers.md."""

    name: str
    scenes: tuple[Scene, ...]


@dataclass(frozen=True)
class Group:
    """Rows, and the tables they are in. `together`: all scenes of a row share a stage, each with a job of its own."""

    rows: tuple[Server | Proxy, ...]
    tables: tuple[Table, ...]
    together: bool = False

    @property
    def name(self) -> str:
        """That of its first table."""
        return self.tables[0].name

    @property
    def scenes(self) -> list[Scene]:
        """Those of all tables."""
        return [scene for table in self.tables for scene in table.scenes]

    def missing(self, row: Server | Proxy) -> str | None:
        """What of the row's servers and proxies is not here."""
        parts = [row, *(scene.setup.behind for scene in self.scenes if scene.setup.behind is not None), BACKEND]
        return next((missing for part in parts if (missing := part.missing())), None)

    async def play(self, row: Server | Proxy, folder: Path) -> dict[str, Seen]:
        """Play all scenes of a row at once; what was seen, by title."""
        seen: dict[str, Seen] = {}
        server = row if isinstance(row, Server) else BACKEND

        def on(setup: Setup) -> Setup:
            return setup if isinstance(row, Server) else replace(setup, behind=row)

        async def play(scene: Scene, stage: Stage) -> None:
            seen[scene.title] = await scene.play(stage)

        async def play_alone(scene: Scene, folder: Path) -> None:
            async with built(on(scene.setup), server, folder) as stage:
                await play(scene, stage)

        if self.together:
            async with built(on(AS_IT_IS), server, folder / "together") as stage, anyio.create_task_group() as tasks:
                for scene in self.scenes:
                    tasks.start_soon(play, scene, stage)
        else:
            async with anyio.create_task_group() as tasks:
                for number, scene in enumerate(self.scenes):
                    tasks.start_soon(play_alone, scene, folder / str(number))
        return {scene.title: seen[scene.title] for scene in self.scenes}


_IMPATIENT: Final = Setup(timeout=2)
_HTML: Final = "<!doctype html><title>Sign in</title>"
GROUPS: Final = (
    Group(
        SERVERS,
        (
            Table(
                "servers",
                (
                    Scene("left alone", scenes.left_silent),
                    Scene("SIGTERM", scenes.stopped),
                    Scene("SIGKILL", scenes.killed),
                    Scene("frozen", scenes.frozen),
                    Scene("client frozen", scenes.client_frozen),
                ),
            ),
        ),
    ),
    Group(
        SERVERS,
        (
            Table(
                "behind",
                (
                    Scene("left alone, nginx with TLS", scenes.left_alone, Setup(NGINX, tls=True)),
                    Scene("SIGKILL, nginx with TLS", scenes.dead, Setup(NGINX, tls=True)),
                    Scene("SIGTERM, HAProxy", scenes.stopped, Setup(HAPROXY)),
                ),
            ),
        ),
    ),
    Group(
        PROXIES,
        (
            Table(
                "proxies",
                (
                    Scene("proxy SIGTERM", scenes.proxy_stopped),
                    Scene("proxy SIGKILL", scenes.proxy_killed),
                    Scene("server SIGTERM", scenes.stopped),
                    Scene("server dead", scenes.dead),
                    Scene("server frozen", scenes.frozen, _IMPATIENT),
                    Scene("server frozen, patient proxy", scenes.frozen),
                    Scene("idle, pings", scenes.idle_kept, _IMPATIENT),
                    Scene("idle, no pings", scenes.idle_cut, _IMPATIENT),
                ),
            ),
        ),
    ),
    Group(
        (*SERVERS, *PROXIES),
        (
            Table(
                "refusals",
                (
                    Scene("401", Refused(401, "auth")),
                    Scene("401, fresh token", Refused(401, "end", once=True, renewable=True)),
                    Scene("403", Refused(403, "auth")),
                    Scene("404, then found", Refused(404, "end", once=True)),
                    Scene("404, no state", Refused(404, "gone", state=404)),
                    Scene("410, no state", Refused(410, "gone", state=410)),
                    Scene("429, Retry-After 2 s", Refused(429, "end", once=True, wait=2)),
                    Scene("503, Retry-After date", Refused(503, "end", once=True, wait=2, dated=True)),
                    Scene("302", Refused(302, "protocol", headers=(("Location", "/ws/progress?jobId=elsewhere"),))),
                    Scene("200 HTML", Refused(200, "protocol", headers=(("Content-Type", "text/html"),), body=_HTML)),
                ),
            ),
            Table(
                "closes",
                (
                    Scene("1000", Closed(1000, "end")),
                    Scene("1008", Closed(1008, "auth")),
                    Scene("1011", Closed(1011, "end")),
                    Scene("1013, back in 2 s", Closed(1013, "end", wait=2)),
                    Scene("3000", Closed(3000, "end")),
                    Scene("4401", Closed(4401, "auth")),
                    Scene("4401, fresh token", Closed(4401, "end", renewable=True)),
                    Scene("4500", Closed(4500, "protocol")),
                ),
            ),
        ),
        together=True,
    ),
)
