"""`Hub`: the work of a job hub as an ASGI application, to mount in another application or to serve alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from .._hub import HubWork
from .calls._routes import routes


def _cors(origins: Collection[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=sorted(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "idempotency-key", "last-event-id"],
        allow_credentials=True,
        expose_headers=["retry-after"],
    )


class Hub(HubWork):
    """The job hub over `database`: the path of a SQLite file, or the URL of a Redis or Valkey server.

    Uploads and large results lie in the folder `files`, `<database>.files/` for a SQLite file. Hubs with
    the same Redis and `prefix` are one hub on many machines: any of them serves any job's sockets, and they share
    `files` too. `prefix` begins all keys and channels in Redis (`towline` if it is None); a `Reporter` needs the same.
    With `replicas` the hub shows an event only when so many replicas of this Redis have it, so that none is lost or
    repeated when one of them becomes the primary.

    It works while it is entered (`async with hub:`); served as the application itself, its lifespan does that. It
    is entered once, which `ForbiddenRequest` says the second time. Entering raises `HubStorageError` where the database
    or the folder cannot be used.

    `authorize` says in whose name a request may start a job (None: it may not); without it only this machine may.
    `token_in_query` also takes the token of a socket or an event stream from `?token=`, where logs and proxies can see
    it. `subprotocol` is the name by which browsers send a socket's token. `base_path` is where the hub is mounted, for
    the URLs it gives.
    `origins` are those of web pages that may open sockets and make calls (by CORS, with cookies), besides the hub's own
    (`https://app.example`).
    `accept_rate` is how many sockets a second it wants to see come back after a restart. `metrics` adds `GET /metrics`
    for Prometheus, which `authorize` guards as it does starting; it needs the `metrics` extra.
    """

    _application: Starlette | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if self._application is None:
            self._is_served = True
            self._application = Starlette(
                routes=routes(self, self._pipelines, metrics=self._metrics),
                middleware=[_cors(self.origins)] if self.origins else [],
                lifespan=self._lifespan,
            )
        await self._application(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, application: Starlette) -> AsyncIterator[None]:
        if self._tasks is not None:  # the program that serves it has entered it already
            yield
        else:
            async with self:
                yield
