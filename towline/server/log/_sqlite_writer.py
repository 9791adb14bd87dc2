"""The one writer of a hub's SQLite file: a thread that commits all that waits for it in one transaction.

The thread lives as long as the log. A write goes there by one queue and comes back by one wake of the loop, as each
further turn of a busy loop would add its length to the age of every event.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar

import anyio
import anyio.to_thread
from anyio import CapacityLimiter

from ..._exceptions import HubStorageError
from ..._loop import Loop
from ._base import Event
from ._bells import Bell

_MAX_BATCH: Final = 256  # writes that share one transaction
_BETWEEN: Final = 0.003  # seconds from one transaction to the next, in which more may come

T = TypeVar("T")


class Written(list[Event]):
    """The events of a write: their readers are to hear of them."""


@dataclass(eq=False)
class _Write(Generic[T]):
    """One change on its way to the thread."""

    apply: Callable[[sqlite3.Connection], T]
    done: Bell = field(default_factory=Bell)
    result: T | None = None
    error: Exception | None = None


class Writer:
    """Commits the writes of one connection, in the order in which they came, while `run` runs in a task.

    The connection is the writer's own, which closes it at the end.
    `check` is called before each transaction, in the thread, and may refuse it by raising. `tell` is called in the loop
    with the events of each write that was kept, before the write returns.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        path: Path,
        check: Callable[[], None],
        tell: Callable[[Sequence[Event]], None],
    ) -> None:
        self._connection = connection
        self._path = path
        self._check = check
        self._tell = tell
        self._queue: SimpleQueue[_Write[Any] | None] = SimpleQueue()
        self._open = True

    async def run(self) -> None:
        """Write until `close`. It cannot be cancelled: what was handed in is written and answered."""
        try:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._write_all, Loop(), limiter=CapacityLimiter(1))
        finally:
            self.close()  # a loop that was stopped by force must not leave the thread waiting

    def close(self) -> None:
        """Take nothing more, and let `run` end when all that was taken is answered."""
        if self._open:
            self._open = False
            self._queue.put(None)

    async def write(self, apply: Callable[[sqlite3.Connection], T]) -> T:
        """Call `apply` in the thread, and return what it returned once that is on disk.

        Raises `HubStorageError` where nothing of it was kept, and what `apply` raised if that was no error of SQLite's.
        """
        if not self._open:
            raise HubStorageError("the log is closed", path=self._path)
        write = _Write(apply)
        self._queue.put(write)
        await write.done.wait_ring()
        if isinstance(write.error, sqlite3.Error):
            raise HubStorageError(str(write.error), path=self._path) from write.error
        if write.error is not None:
            raise write.error
        return write.result  # type: ignore[return-value]  # set with `done`, unless there was an error

    def _answer(self, batch: Sequence[_Write[Any]]) -> None:
        for write in batch:
            if isinstance(write.result, Written):
                self._tell(write.result)
            write.done.ring()

    # --- in the thread -----------------------------------------------------------------------------------------

    def _write_all(self, loop: Loop) -> None:
        may_begin = 0.0
        is_last = False
        with closing(self._connection):
            while not is_last:
                batch, is_last = self._take(may_begin)
                if batch:
                    # One that waits for each of its writes is alone, and gains nothing from a pause.
                    may_begin = time.monotonic() + _BETWEEN if len(batch) > 1 else 0.0
                    _commit(self._connection, batch, self._check)
                    loop.soon(partial(self._answer, batch))

    def _take(self, may_begin: float) -> tuple[list[_Write[Any]], bool]:
        """Wait for writes until there is one and `may_begin` has come; also whether no more will come."""
        batch: list[_Write[Any]] = []
        with suppress(Empty):
            while len(batch) < _MAX_BATCH:
                write = self._queue.get(block=not batch)
                if write is None:
                    return batch, True
                batch.append(write)
                if len(batch) == 1 and (wait := may_begin - time.monotonic()) > 0:
                    time.sleep(wait)
        return batch, False


def _commit(connection: sqlite3.Connection, batch: list[_Write[Any]], check: Callable[[], None]) -> None:
    """Apply a batch in one transaction. One change that fails takes back only itself; a failed commit, all of them."""
    try:
        check()
        connection.execute("BEGIN IMMEDIATE")
        try:
            for write in batch:
                write.result = write.apply(connection)
        except Exception:  # savepoints cost time, and changes seldom fail: they are used when one has failed
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            _apply_each(connection, batch)
        connection.execute("COMMIT")
    except Exception as error:  # nothing of this batch is kept, and every caller gets the error
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        for write in batch:
            write.result, write.error = None, error


def _apply_each(connection: sqlite3.Connection, batch: list[_Write[Any]]) -> None:
    for write in batch:
        connection.execute("SAVEPOINT one")
        try:
            write.result = write.apply(connection)
        except Exception as error:  # the caller's to hear
            if not connection.in_transaction:  # a full disk, say: SQLite itself has taken back all of it
                raise
            write.result, write.error = None, error
            connection.execute("ROLLBACK TO one")
        connection.execute("RELEASE one")
