"""Stores a job's token, position and end, so that another process can continue where this one stopped.

A failing store never stops the connection: the token stays in memory, the problem is logged and shown by
`statistics()`. The cursor is written at most every five seconds, and when the link or the connection ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import anyio
import msgspec

from ..._exceptions import Damaged, TowlineError
from ..._facts import Mark, Numbered, Position
from ..._tasks import Tasks, failure_of
from ..._text import escape
from ..._updates import Outcome, dump_outcome
from ...storage import Store
from ..settings import Settings
from ..tokens import Token

#: The least time between two saves of the cursor, in seconds.
SAVE_EVERY: Final = 5.0
#: The largest outcome to store, in bytes: a record is at most 64 KiB, including its envelope and the token.
OUTCOME_LIMIT: Final = 48 * 1024


def dump_cursor(position: Position) -> str:
    """The text of a position for the store."""
    stored = {"mark": position.text} if isinstance(position, Mark) else {"seq": position.seq, "epoch": position.epoch}
    return msgspec.json.encode(stored).decode()


def load_cursor(text: str) -> Position:
    """Read the text of `dump_cursor`. Raises `Damaged` if it is no position."""
    try:
        found = msgspec.json.decode(text, type=_Stored)
    except msgspec.DecodeError as error:
        raise Damaged("the stored position cannot be read") from error
    if found.mark is not None:
        return Mark(found.mark)
    if found.seq is None:
        raise Damaged("the stored position has no number and no mark")
    return Numbered(found.seq, found.epoch)


class _Stored(msgspec.Struct, frozen=True):
    seq: int | None = None
    epoch: str = ""
    mark: str | None = None


class Journal:
    """Writes token, cursor and end to the store, in this order, in one task that runs while something is due.

    `position` returns the position that all consumers have reached. The token and the end are written at once, the
    cursor at the next save.
    """

    def __init__(self, settings: Settings, tasks: Tasks, position: Callable[[], Position | None]) -> None:
        self._store = settings.store
        self._settings = settings
        self._tasks = tasks
        self._position = position
        self._token: Token | None = None
        self._is_new = False
        self._outcome: Outcome | None = None
        self._ended = False
        self._moved = False
        self._saved: Position | None = None
        # Both are created when first needed: most connections have no store, or nothing due.
        self._wake: anyio.Event | None = None
        self._writing: anyio.Lock | None = None
        self._is_urgent = False
        self._running = False
        self._closed = False
        self._next_save = float("-inf")
        #: The store's last error; None while it works.
        self.problem: TowlineError | None = None

    # --- what is due -----------------------------------------------------------------------------------------------

    def begin(self, cursor: Position | None, *, ended: bool = False) -> None:
        """Set what the stored record holds already."""
        self._saved = cursor
        self._ended = ended

    def token_changed(self, token: Token | None) -> None:
        """Store the record of the job, with this token if it belongs to the job."""
        self._token, self._is_new = token, True
        self._start(now=True)

    def cursor_moved(self) -> None:
        """Note that a consumer's position may have changed."""
        if not self._moved:
            self._moved = True
            self._start(now=False)

    def flush(self) -> None:
        """Write what is due now, not later."""
        self._is_urgent = True
        if self._wake is not None:
            self._wake.set()

    def ended(self, outcome: Outcome) -> None:
        """Store the end: the consumer has taken it."""
        if not self._ended:
            self._ended = True
            self._outcome = outcome
            self._start(now=True)

    async def settle(self, *, last: bool) -> None:
        """Write all that is due, in the calling task. After `last=True` nothing is written any more."""
        self._closed = self._closed or last
        if self._store is not None:
            await self._write(self._store)
        self.flush()

    # --- writing ---------------------------------------------------------------------------------------------------

    @property
    def _due(self) -> bool:
        return self._moved or self._is_new or self._outcome is not None

    def _start(self, *, now: bool) -> None:
        if now:
            self.flush()
        if self._store is not None and not self._running and not self._closed:
            self._running = True
            self._tasks.start_soon(self._run, self._store, name="towline journal")

    async def _run(self, store: Store) -> None:
        try:
            while self._due and not self._closed:
                self._wake = anyio.Event()
                if not self._is_urgent:
                    with anyio.CancelScope(deadline=self._next_save):
                        await self._wake.wait()
                await self._write(store)
        finally:
            self._running = False

    async def _write(self, store: Store) -> None:
        self._writing = self._writing or anyio.Lock()
        async with self._writing:
            self._is_urgent = False
            self._next_save = anyio.current_time() + SAVE_EVERY
            key, settings = self._settings.record_key, self._settings
            # Clear an item only after it was written, so that a cancellation in between leaves it due.
            if self._is_new:
                token = self._token
                secret, expires = None, None
                if token is not None and settings.token_stored:
                    secret, expires = token.secret, token.expires
                kept = settings.parameters, settings.secrets
                await self._try(lambda: store.save(key, secret, expires, parameters=kept[0], secrets=kept[1]))
                self._is_new = self._token is not token
            self._moved, cursor = False, self._position()
            if cursor is not None and cursor != self._saved:
                await self._try(lambda: store.save_cursor(key, dump_cursor(cursor)))
                # Even if it failed, do not retry before the position changes: the next save covers it.
                self._saved = cursor
            if (outcome := self._outcome) is not None:
                await self._try(lambda: store.mark_ended(key, dump_outcome(outcome, OUTCOME_LIMIT)))
                self._outcome = None

    async def _try(self, call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except BaseException as error:
            # Also `InvalidArgument`: the server's text (an epoch, an outcome) may be impossible to store.
            problem = await failure_of(error, "the store", self._tasks.log if self.problem is None else None)
            if self.problem is None:
                self._tasks.log.warning("the store failed; the connection goes on without it: %s", escape(str(problem)))
            self.problem = problem
        else:
            self.problem = None
