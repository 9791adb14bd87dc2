"""One attempt over polling: requests at growing intervals, on one connection that stays open."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio

from .._exceptions import ConnectionBroken, DeadlineExceeded
from .._facts import Received, Request
from ..transport import URL, HTTPClient, Response
from .access import Access, body_of
from .answers import answer_of
from .source import Source

#: Without the server's advice the waits grow from the first to the last, in seconds.
FIRST_WAIT: Final = 0.25
LAST_WAIT: Final = 15.0
_GROWTH: Final = 1.5
#: The most jitter: of these waits, which it shortens, and of the server's advice, which must not be undercut.
_EARLIER: Final = 0.25
_LATER: Final = 0.1

#: The bounds of the server's advice, in seconds.
LEAST_ADVICE: Final = 0.25
MOST_ADVICE: Final = 3600.0

#: The largest answer, in bytes.
_MAX_BODY: Final = 16 << 20

_NOT_MODIFIED: Final = 304

#: The entity tags that are sent back (RFC 9110 section 8.8.3), also without their quotes. Others are not used.
_ETAG: Final = re.compile(r"[!-~]{1,256}")


class PollSource(Source):
    """Polls until it is left. `again` returns the next request, because the position may be part of it."""

    def __init__(self, url: URL, access: Access, again: Callable[[], Awaitable[Request]]) -> None:
        self.last_received = anyio.current_time()
        self._access = access
        self._again = again
        self._client = self._new_client(url)
        self._ready: list[Received] = []
        self._wait = FIRST_WAIT
        self._advice: float | None = None
        # What the next `If-None-Match` says, and the URL that it belongs to.
        self._etag: str | None = None
        self._etag_url: URL | None = None
        # The seconds that a probe gives to the next answer, until it is there.
        self._probe: float | None = None
        self._wake: anyio.Event | None = None
        self._polling: anyio.CancelScope | None = None
        self._left = False

    @classmethod
    async def open(cls, asked: Request, access: Access, again: Callable[[], Awaitable[Request]]) -> PollSource:
        """Make the first poll. Raises as `transport.request`, and `InvalidArgument` for a URL of another origin."""
        source = cls(access.url_of(asked), access, again)
        # If it fails, the client has closed its connection.
        source._ready = await source._poll(asked)
        return source

    async def receive(self) -> Sequence[Received]:
        """Wait for the next poll and return its answer with any status; empty if nothing has changed (304).

        Raises as `open`, and `DeadlineExceeded` if a probe was not answered. Redirects are answers as others.
        """
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        await self._pause()
        return await self._poll(await self._again())

    async def _pause(self) -> None:
        if self._probe is not None or self._left:
            return
        self._wake = anyio.Event()
        try:
            with anyio.move_on_after(self._next_wait()):
                await self._wake.wait()
        finally:
            self._wake = None

    def _next_wait(self) -> float:
        advice = [seconds for seconds in (self.retry, self._advice) if seconds is not None]
        # Jitter keeps many followers from asking in the same moment.
        drawn = self._access.random()
        if advice:
            return max(advice) * (1 + _LATER * drawn)
        wait, self._wait = self._wait, min(self._wait * _GROWTH, LAST_WAIT)
        return wait * (1 - _EARLIER * drawn)

    async def _poll(self, asked: Request) -> list[Received]:
        url = self._access.url_of(asked)
        headers = [*asked.headers]
        has_own = any(name.lower() == "if-none-match" for name, _ in headers)
        if self._etag is not None and asked.method == "GET" and url == self._etag_url and not has_own:
            headers.append(("If-None-Match", self._etag))
        with anyio.CancelScope() as self._polling:
            try:
                await self._begin_probe(url)
                response = await self._client.request(
                    asked.method,
                    url,
                    headers=headers,
                    body=body_of(asked),
                    deadline=self._access.connect_deadline,
                    max_body=_MAX_BODY,
                )
            finally:
                self._polling = None
            return self._take(response, url, asked.method)
        if self._left:
            raise ConnectionBroken("the poll was left")
        raise DeadlineExceeded("an answer to the poll after a change of the network or a wake", self._probe or 0.0)

    async def _begin_probe(self, url: URL) -> None:
        if self._left:
            raise ConnectionBroken("the poll was left")
        if self._probe is not None and self._polling is not None:
            # The kept connection may lead through a network that is gone.
            await self._client.aclose()
            self._client = self._new_client(url)
            self._polling.deadline = anyio.current_time() + self._probe

    def _take(self, response: Response, url: URL, method: str) -> list[Received]:
        self.last_received = anyio.current_time()
        self._probe = None
        self.retry = None if response.retry_after is None else _bounded(response.retry_after)
        if response.status == _NOT_MODIFIED:
            return []  # nothing is new, so the advice that came with the content holds too
        self._advice = None
        # Any other answer replaces what the server would compare with.
        value = (response.headers.header(b"etag") or b"").decode("latin-1")
        is_kept = method == "GET" and response.status == 200 and _ETAG.fullmatch(value)
        self._etag, self._etag_url = (value, url) if is_kept else (None, None)
        return [answer_of(response.headers, response.body)]

    def _new_client(self, url: URL) -> HTTPClient:
        access = self._access
        return HTTPClient(url, network=access.network, wall_time=access.wall_time)

    def advise(self, seconds: float) -> None:
        """Wait so many seconds before the next poll, within bounds, but never less than `Retry-After` says."""
        self._advice = None if math.isnan(seconds) else _bounded(seconds)

    def probe(self, within: float) -> None:
        """Poll now, on a new connection: `receive` raises without an answer within so many seconds.

        A poll that is under way gets so many seconds too.
        """
        self._probe = within if self._probe is None else min(self._probe, within)
        if self._wake is not None:
            self._wake.set()
        if self._polling is not None:
            self._polling.deadline = min(self._polling.deadline, anyio.current_time() + within)

    async def leave(self, code: int, *, wait: float = 0.0) -> None:
        """Close the connection, also in the middle of a poll."""
        self._left = True
        if self._wake is not None:
            self._wake.set()
        if self._polling is not None:
            self._polling.cancel()
        await self._client.aclose()


def _bounded(seconds: float) -> float:
    return min(max(seconds, LEAST_ADVICE), MOST_ADVICE)
