"""One attempt over polling: requests at growing intervals, on one connection that stays open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio

from .._exceptions import InvalidArgument
from .._facts import Answer, Received, Request, Text
from ..transport import HTTPClient, Response
from .access import Access, body_of
from .answers import answer_of

#: Without the server's advice the waits grow from the first to the last, in seconds.
FIRST_WAIT: Final = 0.25
LAST_WAIT: Final = 15.0
_GROWTH: Final = 1.5

#: The bounds of the server's advice, in seconds.
LEAST_ADVICE: Final = 0.25
MOST_ADVICE: Final = 3600.0

#: The largest answer, in bytes.
_MAX_BODY: Final = 16 << 20

_NOT_MODIFIED: Final = 304


class PollSource:
    """Polls until it is left. `again` returns the next request, because the position may be part of it."""

    def __init__(self, access: Access, client: HTTPClient, again: Callable[[], Awaitable[Request]]) -> None:
        #: When bytes last arrived, on the loop's clock.
        self.last_received = anyio.current_time()
        self._access = access
        self._client = client
        self._again = again
        self._ready: list[Received] = []
        self._wait = FIRST_WAIT
        self._advice: float | None = None
        self._retry: float | None = None
        self._asked_url = ""
        self._etag: str | None = None
        self._wake: anyio.Event | None = None

    @classmethod
    async def open(cls, asked: Request, access: Access, again: Callable[[], Awaitable[Request]]) -> PollSource:
        """Make the first poll. Raises as `transport.request`, and `InvalidArgument` for a URL of another origin."""
        url = access.url_of(asked)
        client = HTTPClient(
            url, network=access.network, ssl=access.ssl, allow_insecure=True, wall_time=access.wall_time
        )
        source = cls(access, client, again)
        try:
            source._ready = await source._poll(asked)
        except BaseException:
            await client.aclose()
            raise
        return source

    @property
    def retry(self) -> float | None:
        """The server's advice with its last answer: the least wait before the next request, in seconds."""
        return self._retry

    async def start(self, opening: Sequence[Text]) -> None:
        """Nothing is sent before a poll: raises `InvalidArgument` for an opening message."""
        if opening:
            raise InvalidArgument("opening", "only a WebSocket has opening messages")

    async def receive(self) -> Sequence[Received]:
        """Wait for the next poll and return its answer; empty if nothing has changed (304)."""
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        await self._pause()
        return await self._poll(await self._again())

    async def _pause(self) -> None:
        self._wake = anyio.Event()
        with anyio.move_on_after(self._next_wait()):
            await self._wake.wait()
        self._wake = None

    def _next_wait(self) -> float:
        advice, self._advice = self._advice, None
        if advice is not None:
            return min(max(advice, LEAST_ADVICE), MOST_ADVICE)
        wait, self._wait = self._wait, min(self._wait * _GROWTH, LAST_WAIT)
        # Jitter of a quarter keeps many followers from asking in the same moment.
        return wait * (1 - 0.25 * self._access.random())

    async def _poll(self, asked: Request) -> list[Received]:
        url = self._access.url_of(asked)
        if url.whole != self._asked_url:
            self._asked_url, self._etag = url.whole, None
        headers = [*asked.headers]
        if self._etag is not None:
            headers.append(("If-None-Match", self._etag))
        response = await self._client.request(
            asked.method,
            url,
            headers=headers,
            body=body_of(asked),
            deadline=self._access.connect_deadline,
            max_body=_MAX_BODY,
        )
        self.last_received = anyio.current_time()
        self._advice = self._retry = response.retry_after
        if response.status == _NOT_MODIFIED:
            return []
        return [self._answer(response)]

    def _answer(self, response: Response) -> Answer:
        etag = response.headers.header(b"etag")
        if response.status == 200 and etag is not None:
            self._etag = etag.decode("latin-1")
        return answer_of(response.headers, response.body)

    async def send(self, text: Text) -> None:
        """Nothing can be sent on a poll: raises `InvalidArgument`."""
        raise InvalidArgument("send", "only a WebSocket takes messages")

    def advise(self, seconds: float) -> None:
        """Wait so many seconds before the next poll, within bounds, instead of the usual growing wait."""
        self._advice = seconds

    def probe(self, within: float) -> None:
        """Poll now: the host has changed, so the answer may have too."""
        if self._wake is not None:
            self._wake.set()

    async def leave(self, code: int, *, wait: float = 0.0) -> None:
        """Close the connection."""
        await self._client.aclose()
