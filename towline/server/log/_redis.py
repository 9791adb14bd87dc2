"""The hub's log in Redis or Valkey: the engine for many nodes and for workers elsewhere. Needs the `redis` extra.

The store (`_redis_store.py`) is blocking and runs in worker threads. One subscription brings every event that any hub
or worker writes. Every few seconds the log checks itself: it writes and publishes one event with the same script as any
other event, and has to hear it on the subscription. If that fails, it drops all connections and everything it has
cached, says so in `check`, and tries again until it works.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Final, ParamSpec, Self, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import redis
from anyio import AsyncContextManagerMixin, CapacityLimiter

from ..._exceptions import HubStorageError
from ..._tasks import Tasks
from ._base import Change, Entry, Event, Job, Missing, Place, Request, Token
from ._bells import Bell, Bells
from ._clients import Arrival, Clients
from ._redis_store import NOT_HEARD, RedisStore
from ._tails import Tails

logger: Final = logging.getLogger("towline.server")

P = ParamSpec("P")
T = TypeVar("T")

_CALLS: Final = 16  # commands at once
_HEARD: Final = 256  # messages passed to the event loop at once
_LISTEN: Final = 0.2  # seconds between two looks at whether to keep listening
_CHECK_EVERY: Final = 3.0  # seconds between two checks
_CHECK_AGAIN: Final = 1.0  # seconds, while the last check failed
_HEAR_WITHIN: Final = 3.0  # seconds from the check's event being written to its being heard


class RedisLog(AsyncContextManagerMixin):
    """An `EventLog` on the Redis or Valkey server at `url`, shared by every hub with the same `prefix`.

    An event is shown when `replicas` of the server have it. Entering raises `HubStorageError` if the server does not
    answer, takes no writes or delivers no events.
    """

    shared: Final = True

    def __init__(self, url: str, *, prefix: str = "towline", replicas: int = 0) -> None:
        self._store = RedisStore(url, prefix, replicas)
        self._arrivals = self._store.arrivals.encode()
        self._bells = Bells()
        self._tails = Tails()
        self.clients: Final = Clients()
        self._listening = False
        self._subscription = 0  # which one is in use: a thread with an earlier one stops listening
        self._failure: HubStorageError | None = None  # of the last check
        self._checked = 0
        self._check_heard = anyio.Event()
        self._subscribed = anyio.Event()  # of the present subscription

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        self._limit = CapacityLimiter(_CALLS)
        try:
            await self._call(self._store.check)
            self._listening = True
            async with Tasks(finish=True) as tasks:
                tasks.start_soon(self._listen, name="towline log")
                try:
                    yield self
                finally:
                    self._listening = False
        finally:
            self._store.close()

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._limit)

    # --- hearing of events -------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        # It looks at `_listening` several times a second, so leaving does not wait for a cancelled thread.
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_checking)
                limiter = CapacityLimiter(1)
                while self._listening:
                    try:
                        await anyio.to_thread.run_sync(self._hear, limiter=limiter)
                    except (redis.RedisError, HubStorageError) as error:
                        logger.warning("redis: the subscription failed, subscribing again: %s", error)
                        await anyio.sleep(_LISTEN)
                    except Exception:
                        logger.exception("the subscription failed, subscribing again")
                        await anyio.sleep(_LISTEN)
                tasks.cancel_scope.cancel()

    def _hear(self) -> None:
        subscription = self._subscription
        # The link comes first: after a failover between the two it fails, and never confirms what another server said.
        with self._store.open_link() as link, self._store.client.pubsub() as channel:  # type: ignore[no-untyped-call]
            self._store.wait_replicated(link)
            channel.subscribe(self._store.channel, self._store.arrivals)
            while self._listening and subscription == self._subscription:
                messages: list[dict[str, Any]] = []
                while (message := channel.get_message(timeout=_LISTEN)) is not None:
                    messages.append(message)
                    # Only what has arrived already: wait for the rest of a message, not for the next one.
                    if len(messages) == _HEARD or not channel.connection.can_read(timeout=0):
                        break
                if messages:
                    self._store.wait_replicated(link)
                    anyio.from_thread.run_sync(self._hear_all, messages, subscription)

    def _hear_all(self, messages: Sequence[dict[str, Any]], subscription: int) -> None:
        for message in messages:
            try:
                if message["type"] == "subscribe":
                    # What was published while this hub did not listen is in the streams.
                    self._catch_up()
                    if subscription == self._subscription:
                        self._subscribed.set()
                elif message["type"] == "message" and message["channel"] == self._arrivals:
                    self._arrived(message["data"])
                elif message["type"] == "message":
                    self._heard(message["data"])
            except (msgspec.DecodeError, UnicodeError):
                logger.warning("redis: a message on %r is not of this hub", message["channel"])

    # --- checking ----------------------------------------------------------------------------------------------

    async def _keep_checking(self) -> None:
        limiter = CapacityLimiter(1)  # a check does not queue behind calls that hang
        while True:
            await anyio.sleep(_CHECK_EVERY if self._failure is None else _CHECK_AGAIN)
            failure = await self._find_failure(limiter)
            if failure is not None:
                if self._failure is None:
                    logger.error("the log does not work, reconnecting until it does: %s", failure)
                if self._subscribed.is_set():  # one that is being made is not given up for a new one
                    self._subscribed = anyio.Event()
                    self._subscription += 1
                self._store.reconnect()
                self._catch_up()
            elif self._failure is not None:
                logger.warning("the log works again")
            self._failure = failure

    async def _find_failure(self, limiter: CapacityLimiter) -> HubStorageError | None:
        # An event from before the subscription is never heard, and checks that are always too early would always fail.
        with anyio.move_on_after(_HEAR_WITHIN):
            await self._subscribed.wait()
        self._checked += 1
        self._check_heard = anyio.Event()
        try:
            await anyio.to_thread.run_sync(self._store.write_check, b"%d" % self._checked, limiter=limiter)
        except HubStorageError as error:
            return error
        except Exception as error:
            logger.exception("the check of the log failed")
            return HubStorageError(f"redis: {type(error).__name__}")
        with anyio.move_on_after(_HEAR_WITHIN):
            await self._check_heard.wait()
            return None
        return HubStorageError(NOT_HEARD)

    async def check(self) -> None:
        if self._failure is not None:
            raise HubStorageError(self._failure.problem) from self._failure
        await self._call(self._store.ping)

    def _catch_up(self) -> None:
        self._tails.clear()
        self._bells.ring_all()

    def _heard(self, data: bytes) -> None:
        job_id, pipeline, epoch, seq, event_type, at, payload = msgspec.msgpack.decode(
            data, type=tuple[str, str, str, int, str, float, str]
        )
        if job_id == self._store.check_id:
            if payload == str(self._checked):
                self._check_heard.set()
            return
        event = Event(job_id, pipeline, epoch, seq, event_type, int(at), payload.encode())
        if self._bells.count(job_id):
            self._tails.add(event)
        else:
            # The job has no reader here. A list that lacks its end would look complete.
            self._tails.forget(job_id)
        self._bells.ring(job_id, ended=event.terminal)

    def _arrived(self, data: bytes) -> None:
        job_id, client, socket = msgspec.msgpack.decode(data, type=tuple[str, str, int])
        self.clients.arrived(Arrival(job_id=job_id, client=client, socket=socket))

    def subscribe(self, job_id: str, *, ends_only: bool = False) -> AbstractContextManager[Bell]:
        return self._bells.subscribe(job_id, ends_only=ends_only)

    async def arrive(self, arrival: Arrival) -> int:
        here = self.clients.arrived(arrival)
        return max(here, await self._call(self._store.arrive, arrival))

    # --- the store, in threads ---------------------------------------------------------------------------------

    async def note(self, name: str) -> str | None:
        return await self._call(self._store.note, name)

    async def keep_note(self, name: str, value: str, *, replace: bool) -> str:
        return await self._call(self._store.keep_note, name, value, replace=replace)

    async def is_empty(self) -> bool:
        return await self._call(self._store.is_empty)

    async def create(self, job: Job, request: Request | None) -> Job:
        return await self._call(self._store.create, job, request)

    async def requested(self, owner: str, key: bytes) -> bool:
        return await self._call(self._store.requested, owner, key)

    async def job(self, job_id: str) -> Job | Missing:
        return await self._call(self._store.job, job_id)

    async def append(
        self, job_id: str, event_type: str, payload: bytes, at: int, change: Change | None = None
    ) -> Event | None:
        return await self._call(self._store.append, job_id, event_type, payload, at, change)

    async def append_all(self, job_id: str, entries: Sequence[Entry]) -> int:
        return await self._call(self._store.append_all, job_id, entries)

    async def touch(self, job_id: str, at: int) -> None:
        await self._call(self._store.touch, job_id, at)

    async def read(self, job_id: str, after: int, limit: int) -> Sequence[Event]:
        # The list is kept up to date only while the job has a reader here.
        kept = self._tails.read(job_id, after, limit) if self._bells.count(job_id) else None
        return kept if kept is not None else await self._call(self._store.read, job_id, after, limit)

    async def unfinished(self) -> Sequence[Job]:
        return await self._call(self._store.unfinished)

    async def newest(self, owner: str, limit: int, before: Place | None = None) -> Sequence[Job]:
        return await self._call(self._store.newest, owner, limit, before)

    async def count_running(self, owner: str) -> int:
        return await self._call(self._store.count_running, owner)

    async def count_attempt(self, job_id: str) -> int:
        return await self._call(self._store.count_attempt, job_id)

    async def claim(self, job_id: str, seconds: float) -> bool:
        return await self._call(self._store.claim, job_id, seconds)

    async def add_token(self, token: Token) -> None:
        await self._call(self._store.add_token, token)

    async def token(self, digest: bytes) -> Token | None:
        return await self._call(self._store.token, digest)

    async def limit_token(self, digest: bytes, expires: int) -> None:
        await self._call(self._store.limit_token, digest, expires)

    async def remove_ended(self, before: int) -> Sequence[str]:
        return await self._call(self._store.remove_ended, before)

    async def remove_traces(self, before: int) -> None:
        await self._call(self._store.remove_traces, before)
