"""What is kept on record of a job, so that another process can go on where this one stopped.

A store that fails never stops the connection: the token stays in memory, the problem is logged and shown by
`statistics()`. The cursor is written at most every five seconds, and when the link or the connection ends.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio.abc import TaskGroup

from ._exceptions import TokenStoreError
from ._recovery import Cursor
from ._settings import Settings
from ._tokens import Token
from ._updates import Outcome, dump_outcome

_LOG: Final = logging.getLogger("towline")

#: Least time between two cursor saves, in seconds.
SAVE_EVERY: Final = 5.0
#: Most bytes of an outcome that is kept: a record is at most 64 KiB, with its frame and the token.
OUTCOME_LIMIT: Final = 48 * 1024


class Journal:
    """Writes token, cursor and end to the store, one at a time; the cursor from a task that runs while there is one."""

    def __init__(self, settings: Settings, tasks: TaskGroup) -> None:
        self._store = settings.store
        self._settings = settings
        self._tasks = tasks
        self._cursor: Cursor | None = None
        self._saved: Cursor | None = None
        self._outcome: Outcome | None = None
        self._hurry = anyio.Event()
        self._idle = anyio.Event()
        self._idle.set()
        self._next_save = 0.0
        #: What the store last said it could not do; None while it works.
        self.problem: TokenStoreError | None = None

    async def save_token(self, token: Token) -> None:
        """Put the token on record, with where the job is followed."""
        store, settings = self._store, self._settings
        if store is not None:
            await self._try(
                lambda: store.save(
                    settings.job,
                    token.secret,
                    str(settings.url.origin),
                    token.expires,
                    context={"url": str(settings.url)},
                )
            )

    def begin(self, cursor: Cursor | None) -> None:
        """The record says this already."""
        self._cursor = self._saved = cursor

    def cursor_moved(self, cursor: Cursor | None) -> None:
        """Delivery has come this far."""
        if cursor is None or cursor == self._cursor or self._store is None:
            return
        self._cursor = cursor
        self._start()

    def flush(self) -> None:
        """Write what is due now, not later."""
        self._hurry.set()

    def ended(self, outcome: Outcome) -> None:
        """The consumer has taken the end."""
        if self._store is not None and self._outcome is None:
            self._outcome = outcome
            self.flush()
            self._start()

    async def settle(self) -> None:
        """Wait until all that is due is written."""
        self.flush()
        await self._idle.wait()

    def _start(self) -> None:
        if self._idle.is_set():
            self._idle = anyio.Event()
            self._tasks.start_soon(self._run, name="towline journal")

    async def _run(self) -> None:
        try:
            while self._cursor != self._saved or self._outcome is not None:
                with anyio.CancelScope(deadline=self._next_save):
                    await self._hurry.wait()
                self._hurry = anyio.Event()
                await self._write()
        finally:
            self._idle.set()

    async def _write(self) -> None:
        store, job, cursor = self._store, self._settings.job, self._cursor
        if store is None:
            return
        if cursor is not None and cursor != self._saved:
            await self._try(lambda: store.save_cursor(job, cursor.epoch, cursor.seq))
        # Saved or not, it is not tried again before it has moved: the next save says more.
        self._saved = cursor
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            await self._try(lambda: store.mark_ended(job, dump_outcome(outcome, OUTCOME_LIMIT)))
        self._next_save = anyio.current_time() + SAVE_EVERY

    async def _try(self, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except TokenStoreError as error:
            if self.problem is None:
                _LOG.warning("the store failed, the connection goes on without it: %s", error)
            self.problem = error
        else:
            self.problem = None
