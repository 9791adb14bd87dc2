"""Attempts to follow the job: one task and one source each, and never two sources at once.

A source that is no longer used is closed before the next attempt opens one. Only the job's end, `aclose()` and
`cancel()` wait for the server's answer. Every such wait is shielded and has a deadline.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, Protocol

import anyio
from anyio import TaskHandle

from .._exceptions import InvalidArgument, TowlineError
from .._facts import Follow, InStepAt, Meaning, Position, Received, Request, Text, Via, is_resumed
from .._secret import Secret
from .._tasks import Tasks, failure_of
from ..sources import Source, open_source
from ..statemachine import CloseSocket, Dial, Place
from .reader import Reader
from .settings import Settings

#: Seconds, beyond the timeout of the closing handshake, that a new attempt waits for earlier ones to close.
CLOSE_MARGIN: Final = 1.0


_WORK: Final = {
    Place.TOKEN: "getting a token",
    Place.UPGRADE: "an attempt to connect",
    Place.SOCKET: "the open source",
}


class GetToken(Protocol):
    """Returns the token to use; with `fresh`, another one than the current. None: the server needs none."""

    async def __call__(self, *, fresh: bool = False) -> Secret | None: ...


class Link:
    """One attempt and the source that it opens, in one task."""

    __slots__ = (
        "after",
        "began",
        "closing",
        "generation",
        "in_step",
        "may_be_silent",
        "meant",
        "source",
        "task",
        "to_send",
        "want",
    )

    def __init__(self, generation: int) -> None:
        self.generation = generation
        #: The attempt's task, and the one that closes its source; None if there is none.
        self.task: TaskHandle[None, Any] | None = None
        self.closing: TaskHandle[None, Any] | None = None
        self.want = Follow("websocket")
        #: The position that the request goes on after; None if it begins elsewhere.
        self.after: Position | None = None
        #: The position when the link was asked for.
        self.began: Position | None = None
        #: When the link is in step.
        self.in_step: InStepAt = "open"
        #: Whether nothing need arrive on a link that works: a stream whose server promises no keep-alives.
        self.may_be_silent = False
        self.source: Source | None = None
        #: What a message asked for beyond its facts about the job: messages to send, and what it means for the link.
        self.to_send: list[Text] = []
        self.meant: Meaning | None = None


@dataclass(slots=True, eq=False, repr=False)
class Attempts:
    """Performs the effects on attempts and sources.

    - `token` returns the token to send, `position` where to go on.
    - `dialled` is called when an attempt begins to connect, `opened` when it has.
    - `received` gets what the server said. `room` returns None, or what to await before the next read.
    - `failed` gets the error that ended an attempt, `meant` what a message said about the link.
    """

    settings: Settings
    tasks: Tasks
    reader: Reader
    _: KW_ONLY
    token: GetToken
    position: Callable[[], Position | None]
    dialled: Callable[[], object]
    opened: Callable[[Link], object]
    received: Callable[[Link, Sequence[Received]], object]
    room: Callable[[], Awaitable[object] | None]
    failed: Callable[[TowlineError, Place, int], Awaitable[object]]
    meant: Callable[[Meaning, Link], Awaitable[object]]
    #: The current attempt or open source.
    current: Link | None = field(default=None, init=False)
    # Attempts that were given up and sources that are being closed.
    _leaving: list[Link] = field(default_factory=list, init=False)
    # With these a server recognizes the links of this connection, and the newest of them.
    _client: str = field(default_factory=lambda: secrets.token_hex(8), init=False)
    _links: int = field(default=0, init=False)
    # The position from which the server refused to go on.
    _refused: Position | None = field(default=None, init=False)

    def dial(self, effect: Dial) -> None:
        """Start an attempt."""
        self.current = Link(effect.generation)
        self.current.task = self.tasks.start_soon(self._run, self.current, effect, name="towline link")

    def abandon_dial(self) -> None:
        """Give up the current attempt."""
        link, self.current = self.current, None
        if link is not None:
            self._release(link)

    def probe(self) -> None:
        """Check the link now; if nothing comes in time, it is lost."""
        if self.current is not None and self.current.source is not None:
            self.current.source.probe(self.settings.policy.probe)

    def close_socket(self, effect: CloseSocket) -> None:
        """Close the source; a background task waits for the server's answer."""
        link, self.current = self.current, None
        if link is None:
            return
        self._release(link)
        if link.source is not None:
            link.closing = self.tasks.start_soon(self._close, link, link.source, effect, name="towline close")

    async def all_gone(self) -> None:
        """Wait until all attempts that were given up, and all sources being closed, are gone."""
        while self._leaving:
            link = self._leaving[0]
            for task in (link.task, link.closing):
                if task is not None:
                    await task.wait()
            self._forget(link)

    def is_silent_since(self, moment: float) -> bool:
        """Whether nothing was received after `moment` (on the loop's clock), though something should have been."""
        link = self.current
        if link is None or link.source is None or link.may_be_silent:
            return False
        return link.source.last_received <= moment

    def _release(self, link: Link) -> None:
        self._leaving.append(link)
        if link.task is not None:
            link.task.cancel()

    def _forget(self, link: Link) -> None:
        if link in self._leaving:
            self._leaving.remove(link)

    async def _close(self, link: Link, source: Source, effect: CloseSocket) -> None:
        try:
            # The reader was cancelled, and uses the source until it has ended.
            if link.task is not None:
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 1.0):
                    await link.task.wait()
            await source.leave(effect.code, wait=effect.wait)
        except BaseException as error:
            await failure_of(error, "closing a source", self.tasks.log)  # it is gone in any case
        finally:
            self._forget(link)

    async def _run(self, link: Link, dial: Dial) -> None:
        try:
            await self._follow(link, dial)
        finally:
            if link in self._leaving and link.closing is None and link.source is not None:
                # It was given up as an attempt, but opened in that very moment, so no one else closes it.
                try:
                    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + CLOSE_MARGIN):
                        await link.source.leave(1001)
                except BaseException as error:
                    await failure_of(error, "closing a source", self.tasks.log)
                finally:
                    self._forget(link)

    async def _follow(self, link: Link, dial: Dial) -> None:
        """Run one attempt and its source until it ends."""
        place = Place.TOKEN
        try:
            policy = self.settings.policy
            with anyio.move_on_after(policy.close_wait + CLOSE_MARGIN):
                await self.all_gone()
            await anyio.sleep_until(dial.not_before)
            token = await self.token(fresh=dial.fresh_token)
            place = Place.UPGRADE
            self.dialled()
            self._links += 1
            asked = self._ask(link, self.settings.protocol.sources[dial.source], token)
            link.after = link.want.after if is_resumed(self.settings.protocol, link.want, token, asked) else None
            link.source = await open_source(asked, self.settings.access, lambda: self._ask_again(link))
            place = Place.SOCKET
            link.in_step = asked.in_step
            link.may_be_silent = asked.via in ("events", "lines") and asked.silence is None
            self.opened(link)
            await link.source.start(asked.opening)
            while link.meant is None:
                self.received(link, await link.source.receive())
                while link.to_send:
                    await link.source.send(link.to_send.pop(0))
                if (room := self.room()) is not None:
                    await room
            await self.meant(link.meant, link)
        except BaseException as error:
            failure = await failure_of(error, _WORK[place], self.tasks.log)
            await self.failed(failure, place, link.generation)

    def forget_cursor(self) -> None:
        """Begin without the present position: the server refuses to go on from there."""
        self._refused = self.position()

    def resumes_at(self, position: Position | None) -> bool:
        """Whether a request after this position goes on there."""
        link = self.current
        if link is None or position is None:
            return False
        want = Follow(link.want.via, position, self._client, self._links)
        asked = self.reader.ask(want, None)
        return asked is not None and is_resumed(self.settings.protocol, want, None, asked)

    def _ask(self, link: Link, via: Via, token: Secret | None) -> Request:
        position = link.began = self.position()
        after = None if position == self._refused else position
        link.want = Follow(via, after, self._client, self._links)
        asked = self.reader.ask(link.want, token)
        if asked is None:
            raise InvalidArgument("protocol", f"{self.settings.protocol.name} has no request to follow by {via}")
        return asked

    async def _ask_again(self, link: Link) -> Request:
        return self._ask(link, link.want.via, await self.token())
