"""The hub's log in one SQLite file: the embedded engine.

One writer commits all that waits for it in one transaction: each append is atomic, and many of them share one fsync.
Readers have connections of their own (WAL: they never wait for the writer).

One hub owns a database. It holds a second file, `<database>-owner`, in an exclusive transaction for as long as it runs;
the operating system releases it however the process ends. Before each transaction the hub looks whether the files at
its paths are still the ones it has open: an event in a file that was removed would be lost, so none is written there.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import anyio
import anyio.to_thread
import msgspec
from anyio import AsyncContextManagerMixin, CapacityLimiter
from msgspec import UNSET

from ..._exceptions import HubStorageError
from ..._tasks import Tasks
from ._base import (
    ENDS,
    TOKENS_PER_JOB,
    Change,
    Entry,
    Event,
    Job,
    Missing,
    Place,
    Request,
    RequestMismatch,
    Token,
)
from ._bells import Bell, Bells
from ._clients import Arrival, Clients
from ._sqlite_writer import Writer, Written
from ._tails import Tails

logger: Final = logging.getLogger("towline.server")

_FORMAT: Final = 1

_SCHEMA: Final = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, pipeline TEXT NOT NULL, owner TEXT NOT NULL, epoch TEXT NOT NULL, created INTEGER NOT NULL,
    seq INTEGER NOT NULL, status TEXT NOT NULL, total INTEGER, processed INTEGER, current_item TEXT, updated INTEGER,
    ended INTEGER, attempts INTEGER NOT NULL, outcome BLOB, checkpoint BLOB, request_key BLOB, request_digest BLOB
);
CREATE UNIQUE INDEX jobs_by_request ON jobs (owner, request_key) WHERE request_key IS NOT NULL;
CREATE INDEX jobs_running ON jobs (created) WHERE status = 'running';
CREATE INDEX jobs_running_by_owner ON jobs (owner) WHERE status = 'running';
CREATE INDEX jobs_by_owner ON jobs (owner, created);
CREATE INDEX jobs_by_end ON jobs (ended) WHERE ended IS NOT NULL;
CREATE TABLE events (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, seq INTEGER NOT NULL, type TEXT NOT NULL,
    at INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (job, seq)
) WITHOUT ROWID;
CREATE TABLE tokens (
    digest BLOB PRIMARY KEY, job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, expires INTEGER NOT NULL,
    replaces BLOB
) WITHOUT ROWID;
CREATE INDEX tokens_by_job ON tokens (job, expires);
CREATE TABLE gone (job TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
"""
# Not part of format 1, so it may be missing.
_NOTES: Final = "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"

_OWNER_NOTE: Final = "owner"  # its process and that one's parent

_JOB_COLUMNS: Final = tuple(Job.__dataclass_fields__)
_SELECT_JOB: Final = f"SELECT {', '.join(_JOB_COLUMNS)} FROM jobs"
_SMALL: Final = {"outcome": "CASE status WHEN 'complete' THEN NULL ELSE outcome END", "checkpoint": "NULL"}
_LIST_JOBS: Final = f"SELECT {', '.join(_SMALL.get(name, name) for name in _JOB_COLUMNS)} FROM jobs"
_SELECT_EVENTS: Final = """
SELECT jobs.id, jobs.pipeline, jobs.epoch, events.seq, events.type, events.at, events.payload
FROM events JOIN jobs ON jobs.id = events.job WHERE events.job = ? AND events.seq > ? ORDER BY events.seq LIMIT ?
"""

_READERS: Final = 4
_OWNER_WAIT: Final = 10.0  # seconds a new hub waits for the one before it to stop
_OWNER_LOOK: Final = 0.1  # seconds between two tries
_WORKER_WAIT: Final = 1.0  # seconds it waits if that one is another worker of the same server
_CHECKED_FOR: Final = 1.0  # seconds for which a check counts
_NO_LIMIT: Final = 2**62

T = TypeVar("T")


class SqliteLog(AsyncContextManagerMixin):
    """An `EventLog` in the SQLite file `database`, made where it is not there. Enter it before use, once.

    Entering raises `HubStorageError` where the file is no hub's database, was written by a newer version, cannot be
    written, or is still owned by another hub after 10 s; at once if that hub is another worker of the same server.
    """

    shared: Final = False

    def __init__(self, database: Path) -> None:
        self._path = database
        self._bells = Bells()
        self._tails = Tails()
        self.clients: Final = Clients()
        self._opened: dict[Path, tuple[int, int]] = {}  # what is at each path while the hub runs: device and inode
        self._misplaced = False
        self._checked_at = -_CHECKED_FOR
        self._checks = 0
        self._writer: Writer | None = None
        self._idle_readers: list[sqlite3.Connection] = []

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        self._read_limit = CapacityLimiter(_READERS)
        start = anyio.current_time()
        opened: tuple[sqlite3.Connection, sqlite3.Connection] | None = None
        is_told = False
        while opened is None:
            waited = anyio.current_time() - start
            opened = await anyio.to_thread.run_sync(self._open, waited)
            if opened is None:
                if waited >= _WORKER_WAIT and not is_told:
                    is_told = True
                    wait = _OWNER_WAIT - waited
                    logger.warning("%s: waiting %.0f s for %s to stop", self._path, wait, self._name_owner())
                await anyio.sleep(_OWNER_LOOK)
        owner, writing = opened
        try:
            self._writer = writer = Writer(writing, self._path, self._check_place, self._tell)
            async with Tasks(finish=True) as tasks:
                tasks.start_soon(writer.run, name="towline log")
                try:
                    yield self
                finally:
                    writer.close()
        finally:
            for connection in (*self._idle_readers, owner):
                connection.close()
            self._idle_readers.clear()

    # --- opening -----------------------------------------------------------------------------------------------

    def _open(self, waited: float) -> tuple[sqlite3.Connection, sqlite3.Connection] | None:
        """Open the database. None: another hub still uses it after `waited` seconds."""
        with self._renaming_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path = self._path.resolve()  # one owner, by any link
            for path in (self._path, owner_path := Path(f"{self._path}-owner")):
                _make_private(path)
            owner = _connect(owner_path, timeout=0)
            try:
                if not self._take(owner, waited):
                    owner.close()
                    return None
                writer = _connect(self._path, timeout=5)
                try:
                    self._prepare(writer)
                    for path in (self._path, Path(f"{self._path}-wal"), owner_path):
                        found = path.stat()
                        self._opened[path] = found.st_dev, found.st_ino
                except BaseException:
                    writer.close()
                    raise
            except BaseException:
                owner.close()
                raise
        return owner, writer

    def _take(self, owner: sqlite3.Connection, waited: float) -> bool:
        try:
            owner.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            if waited >= _WORKER_WAIT:
                self._refuse_worker(error)
            if waited >= _OWNER_WAIT:
                problem = f"{self._name_owner()} uses this database: stop it, or give this hub another database"
                raise HubStorageError(problem, path=self._path) from error
            return False
        return True

    def _read_owner(self) -> tuple[str, str]:
        """Read the owner's process and that one's parent; empty if they are not known."""
        try:
            with closing(_connect(self._path, timeout=0)) as reader:
                process, _, parent = (_read_note(reader, _OWNER_NOTE) or "").partition(" ")
        except sqlite3.Error:  # the owner is just making the database
            return "", ""
        return process, parent

    def _name_owner(self) -> str:
        process, _ = self._read_owner()
        return f"another hub (process {process})" if process else "another hub"

    def _refuse_worker(self, cause: sqlite3.OperationalError) -> None:
        """Raise `HubStorageError` if the owner is this process, or another child of this process's parent."""
        process, parent = self._read_owner()
        if process == str(os.getpid()):
            problem = "this process uses the database already"
        elif parent == str(os.getppid()):
            problem = (
                f"process {process}, another worker of the same server, uses the database: a SQLite file has one hub. "
                "Serve it with one worker (gunicorn -w 1, uvicorn --workers 1), or use Redis for several"
            )
        else:
            return
        raise HubStorageError(problem, path=self._path) from cause

    def _prepare(self, writer: sqlite3.Connection) -> None:
        writer.execute("PRAGMA journal_mode = WAL")
        # An event a client has seen is never taken back, not even by a loss of power: its seq would be given twice.
        writer.execute("PRAGMA synchronous = FULL")
        writer.execute("PRAGMA foreign_keys = ON")
        (found,) = writer.execute("PRAGMA user_version").fetchone()
        if found > _FORMAT:
            raise HubStorageError("the database was written by a newer version", path=self._path)
        if found == 0:
            if writer.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None:
                raise HubStorageError("the file is a database, but not a hub's", path=self._path)
            writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
        writer.execute(_NOTES)
        writer.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (_OWNER_NOTE, f"{os.getpid()} {os.getppid()}"))

    @contextmanager
    def _renaming_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise HubStorageError(str(error), path=self._path) from error

    def _check_place(self) -> None:
        """Raise `HubStorageError` unless the open files are still at their paths. Log it once."""
        missing = next((path for path, identity in self._opened.items() if _identity(path) != identity), None)
        if missing is not None:
            problem = "the file was removed or replaced while the hub uses it: put it back, or restart the hub"
            if not self._misplaced:
                logger.error("%s: %s", missing, problem)
            self._misplaced = True
            raise HubStorageError(problem, path=missing)
        self._misplaced = False

    # --- writing -----------------------------------------------------------------------------------------------

    async def _write(self, apply: Callable[[sqlite3.Connection], T]) -> T:
        if self._writer is None:
            raise HubStorageError("the log is not open", path=self._path)
        return await self._writer.write(apply)

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            self._tails.add(event)
            self._bells.ring(event.job_id, ended=event.terminal)

    async def note(self, name: str) -> str | None:
        return await self._read(lambda reader: _read_note(reader, name))

    async def keep_note(self, name: str, value: str, *, replace: bool) -> str:
        def apply(writer: sqlite3.Connection) -> str:
            kept = None if replace else _read_note(writer, name)
            if kept is None:
                writer.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
            return kept or value

        return await self._write(apply)

    async def is_empty(self) -> bool:
        return await self._read(lambda reader: reader.execute("SELECT 1 FROM jobs LIMIT 1").fetchone() is None)

    async def create(self, job: Job, request: Request | None) -> Job:
        def apply(writer: sqlite3.Connection) -> Job:
            if request is not None:
                found = writer.execute(
                    "SELECT id, request_digest FROM jobs WHERE owner = ? AND request_key = ?", (job.owner, request.key)
                ).fetchone()
                if found is not None and found[1] != request.digest:
                    raise RequestMismatch
                if found is not None:
                    return _read_job(writer, found[0])  # type: ignore[return-value]  # it was there a line ago
            row = {name: getattr(job, name) for name in _JOB_COLUMNS}
            if request is not None:
                row |= {"request_key": request.key, "request_digest": request.digest}
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            writer.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", tuple(row.values()))
            return job

        return await self._write(apply)

    async def append(
        self,
        job_id: str,
        event_type: str,
        payload: bytes,
        at: int,
        change: Change | None = None,
    ) -> Event | None:
        written = await self._append(job_id, [Entry(event_type, payload, at, change)])
        return written[0] if written else None

    async def append_all(self, job_id: str, entries: Sequence[Entry]) -> int:
        return len(await self._append(job_id, entries))

    async def _append(self, job_id: str, entries: Sequence[Entry]) -> Written:
        def apply(writer: sqlite3.Connection) -> Written:
            written = (_append(writer, job_id, entry) for entry in entries)
            return Written(event for event in written if event is not None)

        return await self._write(apply)

    async def touch(self, job_id: str, at: int) -> None:
        await self._execute("UPDATE jobs SET updated = ? WHERE id = ? AND status = 'running'", (at, job_id))

    async def count_attempt(self, job_id: str) -> int:
        def apply(writer: sqlite3.Connection) -> int:
            rows = writer.execute(
                "UPDATE jobs SET attempts = attempts + 1 WHERE id = ? RETURNING attempts", (job_id,)
            ).fetchall()
            return int(rows[0][0]) if rows else 0

        return await self._write(apply)

    async def claim(self, job_id: str, seconds: float) -> bool:
        return True

    async def check(self) -> None:
        # A real write, but not one for each of the calls that anybody may make.
        if anyio.current_time() >= self._checked_at + _CHECKED_FOR:
            self._checks += 1
            await self.keep_note("checked", str(self._checks), replace=True)
            self._checked_at = anyio.current_time()

    async def add_token(self, token: Token) -> None:
        def apply(writer: sqlite3.Connection) -> None:
            writer.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?)", (token.digest, token.job_id, token.expires, token.replaces)
            )
            writer.execute(
                "DELETE FROM tokens WHERE digest IN "
                "(SELECT digest FROM tokens WHERE job = ? ORDER BY expires DESC LIMIT -1 OFFSET ?)",
                (token.job_id, TOKENS_PER_JOB),
            )

        await self._write(apply)

    async def limit_token(self, digest: bytes, expires: int) -> None:
        await self._execute("UPDATE tokens SET expires = min(expires, ?) WHERE digest = ?", (expires, digest))

    async def remove_ended(self, before: int) -> Sequence[str]:
        def apply(writer: sqlite3.Connection) -> list[str]:
            removed = [
                str(job_id)
                for (job_id,) in writer.execute("DELETE FROM jobs WHERE ended < ? RETURNING id", (before,)).fetchall()
            ]
            writer.executemany("INSERT OR REPLACE INTO gone VALUES (?, ?)", [(job_id, before) for job_id in removed])
            return removed

        removed = await self._write(apply)
        for job_id in removed:
            self._tails.forget(job_id)
        return removed

    async def remove_traces(self, before: int) -> None:
        await self._execute("DELETE FROM gone WHERE at < ?", (before,))

    async def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        def apply(writer: sqlite3.Connection) -> None:
            writer.execute(statement, values)

        await self._write(apply)

    # --- reading -----------------------------------------------------------------------------------------------

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with self._renaming_errors():
                if self._idle_readers:
                    reader = self._idle_readers.pop()
                else:
                    self._check_place()
                    reader = _connect(self._path, timeout=5)
                try:
                    return query(reader)
                finally:
                    self._idle_readers.append(reader)

        return await anyio.to_thread.run_sync(run, limiter=self._read_limit)

    async def requested(self, owner: str, key: bytes) -> bool:
        query = "SELECT 1 FROM jobs WHERE owner = ? AND request_key = ?"
        return await self._read(lambda reader: reader.execute(query, (owner, key)).fetchone() is not None)

    async def job(self, job_id: str) -> Job | Missing:
        return await self._read(lambda reader: _read_job(reader, job_id))

    async def read(self, job_id: str, after: int, limit: int) -> Sequence[Event]:
        kept = self._tails.read(job_id, after, limit)
        return kept if kept is not None else await self._read(lambda reader: _read_events(reader, job_id, after, limit))

    def subscribe(self, job_id: str, *, ends_only: bool = False) -> AbstractContextManager[Bell]:
        return self._bells.subscribe(job_id, ends_only=ends_only)

    async def arrive(self, arrival: Arrival) -> int:
        return self.clients.arrived(arrival)  # there is no other hub

    async def unfinished(self) -> Sequence[Job]:
        return await self._read(lambda reader: _read_jobs(reader, "WHERE status = 'running' ORDER BY created"))

    async def newest(self, owner: str, limit: int, before: Place | None = None) -> Sequence[Job]:
        older, values = ("", ()) if before is None else ("AND (created, id) < (?, ?)", before)
        where = f"WHERE owner = ? {older} ORDER BY created DESC, id DESC LIMIT ?"
        return await self._read(lambda reader: _read_jobs(reader, where, owner, *values, limit, select=_LIST_JOBS))

    async def count_running(self, owner: str) -> int:
        query = "SELECT count(*) FROM jobs WHERE owner = ? AND status = 'running'"
        return await self._read(lambda reader: int(reader.execute(query, (owner,)).fetchone()[0]))

    async def token(self, digest: bytes) -> Token | None:
        def query(reader: sqlite3.Connection) -> Token | None:
            row = reader.execute(
                "SELECT digest, job, expires, replaces FROM tokens WHERE digest = ?", (digest,)
            ).fetchone()
            return None if row is None else Token(digest=row[0], job_id=row[1], expires=row[2], replaces=row[3])

        return await self._read(query)


def _connect(path: Path, *, timeout: float) -> sqlite3.Connection:
    # No implicit transactions: each one is written out. Connections move between worker threads, one at a time.
    return sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)


def _make_private(path: Path) -> None:
    """Make a file that only its owner can read, if there is none. SQLite's side files take over its mode."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _append(writer: sqlite3.Connection, job_id: str, entry: Entry) -> Event | None:
    columns: dict[str, Any] = {"updated": entry.at, "attempts": 0}
    if entry.change is not None:
        columns |= {
            name: value for name in Change.__struct_fields__ if (value := getattr(entry.change, name)) is not UNSET
        }
    if (status := ENDS.get(entry.type)) is not None:
        columns |= {"status": status, "ended": entry.at, "checkpoint": None}
    assignments = ", ".join(f"{name} = ?" for name in columns)
    rows = writer.execute(
        f"UPDATE jobs SET seq = seq + 1, {assignments} WHERE id = ? AND status = 'running' "
        "AND (processed IS NULL OR processed <= ?) AND (seq = 0 OR ?) AND seq + 1 = coalesce(?, seq + 1) "
        "RETURNING seq, pipeline, epoch",
        (*columns.values(), job_id, columns.get("processed", _NO_LIMIT), entry.type != "job_started", entry.number),
    ).fetchall()
    if not rows:
        return None
    [(seq, pipeline, epoch)] = rows
    writer.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", (job_id, seq, entry.type, entry.at, entry.payload))
    return Event(job_id, pipeline, epoch, seq, entry.type, entry.at, entry.payload)


def _read_note(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _read_job(connection: sqlite3.Connection, job_id: str) -> Job | Missing:
    row = connection.execute(f"{_SELECT_JOB} WHERE id = ?", (job_id,)).fetchone()
    if row is not None:
        return Job(**dict(zip(_JOB_COLUMNS, row, strict=True)))
    gone = connection.execute("SELECT 1 FROM gone WHERE job = ?", (job_id,)).fetchone()
    return Missing.UNKNOWN if gone is None else Missing.GONE


def _read_jobs(connection: sqlite3.Connection, where: str, *values: str | int, select: str = _SELECT_JOB) -> list[Job]:
    rows = connection.execute(f"{select} {where}", values)
    return [Job(**dict(zip(_JOB_COLUMNS, row, strict=True))) for row in rows]


def _read_events(connection: sqlite3.Connection, job_id: str, after: int, limit: int) -> list[Event]:
    return [Event(*row) for row in connection.execute(_SELECT_EVENTS, (job_id, after, limit))]


class StoredEvent(NamedTuple):
    """One event as the log holds it; `timestamp` is in milliseconds since 1970, `payload` as it went to clients."""

    seq: int
    epoch: str
    type: str
    timestamp: int
    payload: dict[str, Any]


def read_events(database: Path, job_id: str) -> list[StoredEvent]:
    """Read a job's whole log from the hub's database, which may be in use: to check what a client says it saw.

    Raises `HubStorageError` where the database cannot be read; a job that is not there has no events.
    """
    if not database.is_file():
        raise HubStorageError("there is no such database", path=database)
    try:
        with closing(_connect(database, timeout=5)) as connection:
            connection.execute("PRAGMA query_only = ON")
            return [
                StoredEvent(event.seq, event.epoch, event.type, event.timestamp, msgspec.json.decode(event.payload))
                for event in _read_events(connection, job_id, 0, _NO_LIMIT)
            ]
    except sqlite3.Error as error:
        raise HubStorageError(str(error), path=database) from error
