"""The keys and scripts of a hub's log in Redis or Valkey, over a blocking client. Needs the `redis` extra.

Each job has a hash (its state) and a stream (its events, whose ids are `<seq>-0`). One script writes both and publishes
the event, so that all hubs see it at once. It needs one server, not a cluster: the scripts touch a job's keys and the
indexes together.

The client library's blocking interface is the same code under asyncio, under trio (in worker threads) and in a worker
process. Commands are never retried automatically, because an append that was carried out must not be repeated.

What was acknowledged must not be lost: run the server with `appendonly yes`, `appendfsync always` and
`maxmemory-policy noeviction`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import redis
from msgspec import UNSET
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..._exceptions import HubStorageError, InvalidArgument
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
from ._clients import Arrival

logger: Final = logging.getLogger("towline.server")

_LISTED: Final = [name for name in Job.__dataclass_fields__ if name not in ("outcome", "checkpoint")]
#: The failure when the check's event was written, and no message about it arrived.
NOT_HEARD: Final = "redis: an event was written and not heard on the subscription"

_TIMEOUT: Final = 5.0  # seconds one command may take
_REMEMBER_CLIENT: Final = 120  # seconds within which a message of a half-open socket must have arrived
_REPLICATE_WITHIN: Final = 1.0  # seconds until the replicas have an event
_KEEP_CHECK: Final = 60  # seconds after which Redis forgets the check of a hub that is gone
_NUMBERS: Final = frozenset({"created", "seq", "total", "processed", "updated", "ended", "attempts"})
_BYTES: Final = frozenset({"outcome", "checkpoint"})

# KEYS: job, running, the owner's running, request, the owner's.
# ARGV: id, created, digest, request key ('' for no request), field, value, …
_CREATE: Final = """
if ARGV[4] ~= '' then
    local found = redis.call('HMGET', KEYS[4], 'job', 'digest')
    if found[1] then return found end
    redis.call('HSET', KEYS[4], 'job', ARGV[1], 'digest', ARGV[3])
    redis.call('HSET', KEYS[1], 'request', ARGV[4])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[5], ARGV[2], ARGV[1])
return false
"""

# KEYS: job, stream, running, ended, channel. ARGV: id, type, payload, at, status ('' for no end), owner prefix,
# processed ('' for unchanged), number ('' for the next), how many to set, name, value, …, names to delete …
# The event is published right after the first write, which finds a server that takes none. A user who may not publish
# gets an error, and nothing stays written.
_APPEND: Final = """
local job = redis.call('HMGET', KEYS[1], 'status', 'pipeline', 'epoch', 'owner', 'processed', 'seq')
if job[1] ~= 'running' then return false end
if ARGV[2] == 'job_started' and job[6] ~= '0' then return false end
if ARGV[7] ~= '' and job[5] and tonumber(ARGV[7]) < tonumber(job[5]) then return false end
if ARGV[8] ~= '' and tonumber(ARGV[8]) ~= tonumber(job[6]) + 1 then return false end
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
local message = cmsgpack.pack({ARGV[1], job[2], job[3], seq, ARGV[2], tonumber(ARGV[4]), ARGV[3]})
local published = redis.pcall('PUBLISH', KEYS[5], message)
if type(published) == 'table' and published.err then
    redis.call('HINCRBY', KEYS[1], 'seq', -1)
    return redis.error_reply('NOPERM the user may not publish on ' .. KEYS[5])
end
redis.call('XADD', KEYS[2], seq .. '-0', 't', ARGV[2], 'a', ARGV[4], 'p', ARGV[3])
local last = 9 + 2 * tonumber(ARGV[9])
redis.call('HSET', KEYS[1], unpack(ARGV, 10, last))
if #ARGV > last then redis.call('HDEL', KEYS[1], unpack(ARGV, last + 1)) end
if ARGV[5] ~= '' then
    redis.call('HSET', KEYS[1], 'status', ARGV[5], 'ended', ARGV[4])
    redis.call('HDEL', KEYS[1], 'checkpoint')
    redis.call('ZREM', KEYS[3], ARGV[1])
    redis.call('ZADD', KEYS[4], ARGV[4], ARGV[1])
    redis.call('SREM', ARGV[6] .. job[4], ARGV[1])
end
return {seq, job[2], job[3]}
"""

# KEYS: job. ARGV: at.
_TOUCH: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'updated', ARGV[1])
return 1
"""

# KEYS: job. Counts only where there is a job.
_COUNT_ATTEMPT: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
return redis.call('HINCRBY', KEYS[1], 'attempts', 1)
"""

# KEYS: token, the job's tokens. ARGV: digest, expires, how many to keep, token prefix, field, value, …
_ADD_TOKEN: Final = """
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
for _, old in ipairs(redis.call('ZREVRANGE', KEYS[2], ARGV[3], -1)) do
    redis.call('DEL', ARGV[4] .. old)
    redis.call('ZREM', KEYS[2], old)
end
"""

# KEYS: token. ARGV: digest, expires, prefix of the jobs' tokens.
_LIMIT_TOKEN: Final = """
local token = redis.call('HMGET', KEYS[1], 'expires', 'job')
if token[1] and tonumber(ARGV[2]) < tonumber(token[1]) then
    redis.call('HSET', KEYS[1], 'expires', ARGV[2])
    redis.call('ZADD', ARGV[3] .. token[2], ARGV[2], ARGV[1])
end
"""

# KEYS: job, stream, the job's tokens, ended, gone, lease. ARGV: id, at, token prefix, request prefix, owner prefix.
_REMOVE: Final = """
if redis.call('ZREM', KEYS[4], ARGV[1]) == 0 then return 0 end
for _, digest in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do redis.call('DEL', ARGV[3] .. digest) end
local request = redis.call('HGET', KEYS[1], 'request')
if request then redis.call('DEL', ARGV[4] .. request) end
redis.call('ZREM', ARGV[5] .. (redis.call('HGET', KEYS[1], 'owner') or ''), ARGV[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[6])
redis.call('ZADD', KEYS[5], ARGV[2], ARGV[1])
return 1
"""

# KEYS: lease. ARGV: holder, milliseconds ('0' to let go).
_CLAIM: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
"""

# KEYS: client, channel. ARGV: job, client, number, seconds to remember it.
_ARRIVE: Final = """
local latest = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[3]) < latest then return latest end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
redis.call('PUBLISH', KEYS[2], cmsgpack.pack({ARGV[1], ARGV[2], tonumber(ARGV[3])}))
return tonumber(ARGV[3])
"""


class RedisStore:
    """The log's keys and scripts, over a blocking client that may be used by many threads at once."""

    def __init__(self, url: str, prefix: str = "towline", replicas: int = 0) -> None:
        self._prefix = prefix
        self._replicas = replicas
        self._make_pool = partial(
            redis.ConnectionPool.from_url,
            url,
            socket_timeout=_TIMEOUT,
            socket_connect_timeout=_TIMEOUT,
            health_check_interval=15,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            self.client: Final[redis.Redis] = redis.Redis.from_pool(self._make_pool())
        except ValueError:
            # The error quotes a piece of the URL, which may be part of the password: so it is not even the cause.
            problem = "is none of a Redis server (special characters in a password are percent-encoded)"
            raise InvalidArgument("url", problem) from None
        self.channel: Final = self._key("events")
        self.arrivals: Final = self._key("arrivals")
        self._holder = secrets.token_hex(8)
        #: The id of this hub's own job, which is in no list and cannot be started: `write_check` adds to its log.
        self.check_id: Final = f"check-{self._holder}"
        register = self.client.register_script
        self._create = register(_CREATE)
        self._append = register(_APPEND)
        self._touch = register(_TOUCH)
        self._count_attempt = register(_COUNT_ATTEMPT)
        self._add_token = register(_ADD_TOKEN)
        self._limit_token = register(_LIMIT_TOKEN)
        self._remove = register(_REMOVE)
        self._claim = register(_CLAIM)
        self._arrive = register(_ARRIVE)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    @contextmanager
    def _renaming_errors(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            if isinstance(error, redis.ReadOnlyError):
                self.reconnect()  # this server is no primary any more; its address may lead to another one
            hint = ""
            if isinstance(error, redis.exceptions.NoPermissionError):
                hint = f" (allow the user the keys ~{self._prefix}:* and the channels &{self._prefix}:*)"
            # The client's text quotes the URL's password only in its repr, which is not used.
            raise HubStorageError(f"redis: {type(error).__name__}: {error}{hint}") from error

    def reconnect(self) -> None:
        """Drop all connections: an idle one now, one that is in use when its command has ended."""
        old, self.client.connection_pool = self.client.connection_pool, self._make_pool()
        old.disconnect(inuse_connections=False)

    def check(self) -> None:
        """Write an event and hear it. Warn if the server may lose what it acknowledged."""
        with self._renaming_errors(), self.client.pubsub() as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(self.channel, self.arrivals)
            self.write_check(b"start")
            deadline = time.monotonic() + _TIMEOUT
            while not self._is_own_check(channel.get_message(timeout=_TIMEOUT)):
                if time.monotonic() > deadline:
                    raise HubStorageError(NOT_HEARD)
        self.wait_replicated()
        for problem in self._find_risks():
            logger.warning("redis may lose events that it acknowledged: %s", problem)

    def _is_own_check(self, message: dict[str, Any] | None) -> bool:
        return message is not None and message["type"] == "message" and self.check_id.encode() in message["data"]

    def _find_risks(self) -> Iterator[str]:
        with self._renaming_errors():
            try:
                settings = cast("dict[object, object]", self.client.config_get("append*"))
                memory = cast("dict[object, object]", self.client.config_get("maxmemory-policy"))
            except redis.ResponseError:  # a managed server does not show its settings
                return
        values = {_text(name): _text(value) for name, value in (settings | memory).items()}
        if (values.get("appendonly"), values.get("appendfsync")) != ("yes", "always"):
            yield "set appendonly yes and appendfsync always"
        if (policy := values.get("maxmemory-policy")) != "noeviction":
            yield f"maxmemory-policy is {policy}, set it to noeviction"

    def write_check(self, payload: bytes) -> None:
        """Append one event to this hub's own job, exactly as every event is appended."""
        keys, args = self._appending(self.check_id, Entry("check", payload, 0))
        job, events = keys[:2]
        with self._renaming_errors(), self.client.pipeline(transaction=True) as transaction:
            transaction.delete(job, events)
            transaction.hset(job, mapping={"status": "running", "pipeline": "", "epoch": "", "owner": ""})
            self._append(keys=keys, args=args, client=transaction)
            transaction.expire(job, _KEEP_CHECK)
            transaction.expire(events, _KEEP_CHECK)
            transaction.execute()

    def open_link(self) -> redis.Redis:
        """Return a client with one connection."""
        return self.client.client()  # type: ignore[no-any-return, no-untyped-call]

    def wait_replicated(self, link: redis.Redis | None = None) -> None:
        """Wait until the replicas have everything that this server has written so far, and raise if they do not.

        Redis replicates after it has answered and published, so a primary that dies takes its last events with it.
        WAIT counts from the last write of its own connection (https://redis.io/commands/wait), hence the write. `link`
        has one connection, to the server in question.
        """
        if not self._replicas:
            return
        with self._renaming_errors(), (link or self.client).pipeline(transaction=False) as commands:
            commands.set(self._key("fence"), b"")
            commands.execute_command("WAIT", self._replicas, round(_REPLICATE_WITHIN * 1000))  # type: ignore[no-untyped-call]
            reached = commands.execute()[1]
        if reached < self._replicas:
            raise HubStorageError(f"redis: {reached} of {self._replicas} replicas have the newest events")

    def ping(self) -> None:
        """Raise `HubStorageError` unless the server answers."""
        with self._renaming_errors():
            self.client.ping()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    # --- notes -------------------------------------------------------------------------------------------------

    def note(self, name: str) -> str | None:
        with self._renaming_errors():
            value = self.client.hget(self._key("notes"), name)
        return None if value is None else _text(value)

    def keep_note(self, name: str, value: str, *, replace: bool) -> str:
        with self._renaming_errors():
            (self.client.hset if replace else self.client.hsetnx)(self._key("notes"), name, value)
        if not replace:
            self.wait_replicated()  # a hub that asks the next primary must get the same answer
        kept = self.note(name)
        return value if kept is None else kept

    def is_empty(self) -> bool:
        with self._renaming_errors():
            return not self.client.exists(self._key("running"), self._key("ended"))

    # --- jobs --------------------------------------------------------------------------------------------------

    def create(self, job: Job, request: Request | None) -> Job:
        asked = "" if request is None else _asked(job.owner, request.key)
        fields = [
            part
            for name in Job.__dataclass_fields__
            if (value := getattr(job, name)) is not None
            for part in (name, value)
        ]
        keys = [
            self._key("job", job.id),
            self._key("running"),
            self._key("owner", job.owner),
            self._key("request", asked),
            self._key("jobs", job.owner),
        ]
        digest = b"" if request is None else request.digest
        with self._renaming_errors():
            found = self._create(keys=keys, args=[job.id, job.created, digest, asked, *fields])
        if found is None:
            return job
        if found[1] != digest:
            raise RequestMismatch
        kept = self.job(_text(found[0]))
        if not isinstance(kept, Job):
            raise HubStorageError("redis: a request's job is not there")
        return kept

    def requested(self, owner: str, key: bytes) -> bool:
        with self._renaming_errors():
            return bool(self.client.exists(self._key("request", _asked(owner, key))))

    def job(self, job_id: str) -> Job | Missing:
        with self._renaming_errors(), self.open_link() as link:
            fields = cast("dict[bytes, bytes]", link.hgetall(self._key("job", job_id)))
            self.wait_replicated(link)
            if not fields:
                gone = link.zscore(self._key("gone"), job_id)
                return Missing.UNKNOWN if gone is None else Missing.GONE
        fields.pop(b"request", None)
        return Job(**{name.decode(): _value(name.decode(), value) for name, value in fields.items()})

    def append(self, job_id: str, event_type: str, payload: bytes, at: int, change: Change | None) -> Event | None:
        keys, args = self._appending(job_id, Entry(event_type, payload, at, change))
        with self._renaming_errors():
            written = self._append(keys=keys, args=args)
        if written is None:
            return None
        seq, pipeline, epoch = written
        return Event(job_id, _text(pipeline), _text(epoch), seq, event_type, at, payload)

    def append_all(self, job_id: str, entries: Sequence[Entry]) -> int:
        with self._renaming_errors(), self.client.pipeline(transaction=True) as transaction:
            for entry in entries:
                keys, args = self._appending(job_id, entry)
                self._append(keys=keys, args=args, client=transaction)
            return sum(written is not None for written in transaction.execute())

    def _appending(self, job_id: str, entry: Entry) -> tuple[list[str], list[Any]]:
        change, at = entry.change, entry.at
        values = {} if change is None else {name: getattr(change, name) for name in Change.__struct_fields__}
        values = {"updated": at, "attempts": 0} | {name: v for name, v in values.items() if v is not UNSET}
        kept = [part for name, value in values.items() if value is not None for part in (name, value)]
        dropped = [name for name, value in values.items() if value is None]
        processed = values.get("processed", "")
        keys = [
            self._key("job", job_id),
            self._key("events", job_id),
            self._key("running"),
            self._key("ended"),
            self.channel,
        ]
        args = [job_id, entry.type, entry.payload, at, ENDS.get(entry.type, ""), self._key("owner", ""), processed]
        number = "" if entry.number is None else entry.number
        return keys, [*args, number, len(kept) // 2, *kept, *dropped]

    def touch(self, job_id: str, at: int) -> bool:
        """Note a sign of life; whether the job runs."""
        with self._renaming_errors():
            return bool(self._touch(keys=[self._key("job", job_id)], args=[at]))

    def read(self, job_id: str, after: int, limit: int) -> Sequence[Event]:
        with self._renaming_errors():
            pipeline, epoch = self.client.hmget(self._key("job", job_id), ["pipeline", "epoch"])
            if pipeline is None or epoch is None:
                return []
        with self._renaming_errors(), self.open_link() as link:
            entries = link.xrange(self._key("events", job_id), f"{after + 1}-0", "+", count=limit)
            self.wait_replicated(link)
        return [
            Event(
                job_id,
                _text(pipeline),
                _text(epoch),
                int(identity.partition(b"-")[0]),
                fields[b"t"].decode(),
                int(fields[b"a"]),
                fields[b"p"],
            )
            for identity, fields in cast("list[tuple[bytes, dict[bytes, bytes]]]", entries)
        ]

    def unfinished(self) -> Sequence[Job]:
        with self._renaming_errors():
            ids = cast("list[bytes]", self.client.zrange(self._key("running"), 0, -1))
        jobs = [self.job(job_id.decode()) for job_id in ids]
        return [job for job in jobs if isinstance(job, Job) and job.running]

    def newest(self, owner: str, limit: int, before: Place | None) -> Sequence[Job]:
        key = self._key("jobs", owner)
        with self._renaming_errors():
            start = 0
            if before is not None:
                rank = cast("int | None", self.client.zrevrank(key, before.id))
                # A job that was removed since has no rank; its neighbours of the same millisecond come again.
                start = self.client.zcount(key, f"({before.created}", "+inf") if rank is None else rank + 1
            ids = cast("list[bytes]", self.client.zrange(key, start, start + limit - 1, desc=True))
            with self.client.pipeline(transaction=False) as calls:
                for job_id in ids:
                    calls.hmget(self._key("job", job_id.decode()), _LISTED)
                found = [dict(zip(_LISTED, values, strict=True)) for values in calls.execute()]
            found = [fields for fields in found if fields["id"] is not None]
            ends = [fields for fields in found if fields["status"] in (b"failed", b"canceled")]
            with self.client.pipeline(transaction=False) as calls:
                for fields in ends:
                    calls.hget(self._key("job", fields["id"].decode()), "outcome")
                for fields, outcome in zip(ends, calls.execute(), strict=True):
                    fields["outcome"] = outcome
        return [
            Job(**{name: _value(name, value) for name, value in fields.items() if value is not None})
            for fields in found
        ]

    def count_running(self, owner: str) -> int:
        with self._renaming_errors():
            return self.client.scard(self._key("owner", owner))

    def count_attempt(self, job_id: str) -> int:
        with self._renaming_errors():
            return int(self._count_attempt(keys=[self._key("job", job_id)]))

    def claim(self, job_id: str, seconds: float) -> bool:
        with self._renaming_errors():
            return bool(self._claim(keys=[self._key("lease", job_id)], args=[self._holder, round(seconds * 1000)]))

    def arrive(self, arrival: Arrival) -> int:
        keys = [self._key("client", arrival.job_id, arrival.client), self.arrivals]
        args: list[Any] = [arrival.job_id, arrival.client, arrival.socket, _REMEMBER_CLIENT]
        with self._renaming_errors():
            return int(self._arrive(keys=keys, args=args))

    # --- tokens ------------------------------------------------------------------------------------------------

    def add_token(self, token: Token) -> None:
        fields: list[Any] = ["job", token.job_id, "expires", token.expires]
        if token.replaces is not None:
            fields += ["replaces", token.replaces]
        digest = token.digest.hex()
        keys = [self._key("token", digest), self._key("tokens", token.job_id)]
        with self._renaming_errors():
            args: list[Any] = [digest, token.expires, TOKENS_PER_JOB, self._key("token", ""), *fields]
            self._add_token(keys=keys, args=args)

    def token(self, digest: bytes) -> Token | None:
        with self._renaming_errors():
            job_id, expires, replaces = self.client.hmget(
                self._key("token", digest.hex()), ["job", "expires", "replaces"]
            )
        if job_id is None or expires is None:
            return None
        return Token(digest=digest, job_id=_text(job_id), expires=int(expires), replaces=cast("bytes | None", replaces))

    def limit_token(self, digest: bytes, expires: int) -> None:
        args: list[Any] = [digest.hex(), expires, self._key("tokens", "")]
        with self._renaming_errors():
            self._limit_token(keys=[self._key("token", digest.hex())], args=args)

    # --- the end of all ----------------------------------------------------------------------------------------

    def remove_ended(self, before: int) -> Sequence[str]:
        removed: list[str] = []
        with self._renaming_errors():
            found = self.client.zrange(self._key("ended"), "-inf", f"({before}", byscore=True)
            for job_id in map(_text, cast("list[bytes]", found)):
                keys = [
                    self._key("job", job_id),
                    self._key("events", job_id),
                    self._key("tokens", job_id),
                    self._key("ended"),
                    self._key("gone"),
                    self._key("lease", job_id),
                ]
                prefixes = [self._key("token", ""), self._key("request", ""), self._key("jobs", "")]
                if self._remove(keys=keys, args=[job_id, before, *prefixes]):
                    removed.append(job_id)
        return removed

    def remove_traces(self, before: int) -> None:
        with self._renaming_errors():
            self.client.zremrangebyscore(self._key("gone"), "-inf", f"({before}")


def _asked(owner: str, key: bytes) -> str:
    return f"{owner}:{key.hex()}"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _value(name: str, value: bytes) -> Any:
    if name in _NUMBERS:
        return int(value)
    return value if name in _BYTES else value.decode()
