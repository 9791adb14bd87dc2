"""Every error Towline raises, in one tree.

Every layer may import this module; it imports no other part of Towline.

The tree shows who is at fault::

    TowlineError
    ├── UsageError                 the calling program: fix the call
    │   ├── InvalidArgument        (a ValueError) an argument has an unusable value
    │   ├── ForbiddenRequest       the present state does not allow the request
    │   │   ├── JobEnded           ... because the job has ended
    │   │   └── Cancelled          ... because cancel() was called: final
    │   ├── StateUnreachable       the state or result you wait for cannot be reached
    │   ├── TokenProviderFailed    the program's token provider raised or returned no token
    │   └── TableError             a state table is incomplete or contradicts itself
    ├── RemoteError                the peer
    │   ├── ProtocolViolation      it sent bytes that the protocol forbids
    │   ├── MalformedMessage       it sent a message that is not valid for its type
    │   ├── MessageTooBig          it sent more than the limits allow
    │   ├── HandshakeRefused       it answered the upgrade with a status other than 101
    │   ├── UnexpectedResponse     it answered an HTTP call with an unusable response
    │   ├── TokenRefused           it (or the token provider) refuses to issue a token
    │   └── ConnectionClosed       the WebSocket was closed, by the peer or by us
    ├── NetworkError               the network between you and the peer
    │   ├── NameNotResolved
    │   ├── ConnectFailed
    │   ├── ConnectionBroken
    │   ├── ProxyFailed
    │   └── CertificateRejected    the peer's certificate could not be verified
    ├── DeadlineExceeded           (a TimeoutError) no answer arrived in time
    ├── ProtocolFailed             a protocol raised, or returned something that the engine cannot use
    ├── UnexpectedFailure          code outside Towline raised another error: `network=`, `store=`, a library
    ├── Exhausted                  the engine has given up; `reason` says why
    ├── HubStorageError            the job hub's log cannot be opened, read or written
    ├── JobFailure                 a job's own function raises it to say how the job failed
    └── TokenStoreError            the token store
        ├── Locked                 the keyring is locked, or did not answer
        ├── KeyUnavailable         the key that protects the store is not available
        ├── Damaged                a file is not as Towline wrote it
        ├── WrongKey               the given key is not the one that protects the store
        ├── RecordMismatch         a record belongs to another job or server
        ├── AmbiguousJob           several servers' jobs with this id are on record
        ├── UnsafePermissions      other users can read or replace the files
        ├── UnknownVersion         another version of Towline wrote the store
        ├── ReadFailed             a file exists but cannot be read
        └── WriteFailed            nothing was saved; the earlier content is still there

Each error keeps its facts in fields, builds its text in `__str__` and has its cause in `__cause__`. No error holds a
token, a header or bytes of a message. Unless a docstring says otherwise, the object that raised is still usable.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class TowlineError(Exception):
    """Base of every error that Towline raises on purpose."""


# --- the calling program ---------------------------------------------------------------------------------------


class UsageError(TowlineError):
    """The calling program made an impossible request; nothing has changed."""


class InvalidArgument(UsageError, ValueError):
    """An argument has an unusable value (a URL, a header, a job id, a number of a policy); nothing was started."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class ForbiddenRequest(UsageError):
    """The connection's present state does not allow the request; the state is unchanged and still usable."""

    def __init__(self, request: str, state: str, why: str) -> None:
        super().__init__(request, state, why)
        self.request = request
        self.state = state
        self.why = why

    def __str__(self) -> str:
        return f"{self.request} is not possible while {self.state}: {self.why}"


class JobEnded(ForbiddenRequest):
    """The job has ended, so there is nothing to connect to; the connection's `outcome` says how it ended."""


class Cancelled(ForbiddenRequest):
    """`cancel()` was called on this connection and is final; make a new `Connection`."""


class StateUnreachable(UsageError):
    """The wanted state or result cannot be reached from the present state; the connection is still usable."""

    def __init__(self, wanted: str, state: str, hint: str = "") -> None:
        super().__init__(wanted, state, hint)
        self.wanted = wanted
        self.state = state
        self.hint = hint

    def __str__(self) -> str:
        problem = f"cannot reach {self.wanted} while {self.state}"
        return f"{problem}: {self.hint}" if self.hint else problem


class TokenProviderFailed(UsageError):
    """The program's token provider raised or returned no token; the engine retries within its budget.

    `problem` says which of the two happened. If the provider raised, its error is the cause.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        # The provider's own text is left out, because it may quote the token.
        return f"the token provider {self.problem}"


class TableError(UsageError):
    """A state table is incomplete or contradicts itself. `findings` has one sentence for each problem."""

    def __init__(self, findings: tuple[str, ...]) -> None:
        super().__init__(findings)
        self.findings = findings

    def __str__(self) -> str:
        count = "a problem" if len(self.findings) == 1 else f"{len(self.findings)} problems"
        return f"the state table has {count}: " + "; ".join(self.findings)


# --- the peer --------------------------------------------------------------------------------------------------


class RemoteError(TowlineError):
    """The peer did something that ends this exchange."""


class ProtocolViolation(RemoteError):
    """The peer sent bytes that the protocol forbids; this socket or exchange is dead.

    `close_code` is the code we closed with (RFC 6455 section 7.4.1), or None if the handshake had not finished.
    """

    def __init__(self, problem: str, close_code: int | None = None) -> None:
        super().__init__(problem, close_code)
        self.problem = problem
        self.close_code = close_code

    def __str__(self) -> str:
        return f"the server broke the protocol: {self.problem}"


class MalformedMessage(RemoteError):
    """A message is not JSON or is not valid for its type; it was skipped and the socket stays open.

    `type` is the message's type, if readable. `path` is the place of the problem (`$.payload.progress`). `job_id`,
    `epoch` and `seq` are the frame's, if readable, because the frame still takes its place in the log. `job_id` is None
    for a text that is about no job, such as a heartbeat, and empty if the message may be about any.
    """

    def __init__(
        self,
        type: str | None,  # noqa: A002 - the name of the field in the message
        path: str,
        problem: str,
        *,
        job_id: str | None = "",
        epoch: str | None = None,
        seq: int | None = None,
    ) -> None:
        super().__init__(type, path, problem)
        self.type = type
        self.path = path
        self.problem = problem
        self.job_id = job_id
        self.epoch = epoch
        self.seq = seq

    def __str__(self) -> str:
        return f"{self.type or 'a message'!r} is not valid at {self.path}: {self.problem}"


class MessageTooBig(RemoteError):
    """The peer sent more than `limit` (bytes, or the count `what` names); this socket or exchange is dead."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(what, limit)
        self.what = what
        self.limit = limit

    def __str__(self) -> str:
        return f"the server sent more than {self.limit} {self.what}"


class HandshakeRefused(RemoteError):
    """The server answered the upgrade with a status other than 101; there is no socket.

    `retry_after` is the server's advice in seconds; a date was converted to seconds. `body` is the first 64 KiB of
    the answer's body at most. It is the server's text: escape it before you show it.
    """

    def __init__(self, status: int, *, retry_after: float | None = None, body: bytes = b"") -> None:
        super().__init__(status)
        self.status = status
        self.retry_after = retry_after
        self.body = body

    def __str__(self) -> str:
        advice = "" if self.retry_after is None else f"; it asks to retry after {self.retry_after:g} s"
        return f"the server refused the WebSocket with HTTP status {self.status}{advice}"


class UnexpectedResponse(RemoteError):
    """The server answered an HTTP call with an unusable response; the call may be repeated.

    `status` is the HTTP status, `problem` says what is wrong with the answer, `retry_after` is advice in seconds.
    """

    def __init__(self, status: int, problem: str, *, retry_after: float | None = None) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"the server answered HTTP status {self.status}: {self.problem}"


class TokenRefused(RemoteError):
    """No token is available: raise it from a token provider to stop further requests for one."""

    def __init__(self, problem: str = "no token is available") -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class ConnectionClosed(RemoteError):
    """The WebSocket was closed; the socket is dead, and messages received earlier stay delivered.

    `code` and `reason` come from the peer's close frame (RFC 6455 section 7.1.5): 1005 for a frame without a code,
    1006 if no close frame arrived. `sent_code` is the code we sent, or None. `by_us` is true if we closed first.
    """

    def __init__(self, code: int, reason: str = "", *, sent_code: int | None = None, by_us: bool = False) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.sent_code = sent_code
        self.by_us = by_us

    def __str__(self) -> str:
        who = "we" if self.by_us else "the server"
        # The reason is the server's text: repr() escapes control sequences that a terminal would execute.
        why = f" ({self.reason!r})" if self.reason else ""
        return f"{who} closed the WebSocket with code {self.code}{why}"


# --- the network -----------------------------------------------------------------------------------------------


class NetworkError(TowlineError):
    """The network failed; the same call may succeed later."""


class NameNotResolved(NetworkError):
    """The host's name has no address now, or the resolver failed."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host

    def __str__(self) -> str:
        return f"the name {self.host!r} could not be resolved"


class ConnectFailed(NetworkError):
    """No address of the host accepted the connection; `problem` is the operating system's own text."""

    def __init__(self, host: str, port: int, problem: str) -> None:
        super().__init__(host, port, problem)
        self.host = host
        self.port = port
        self.problem = problem

    def __str__(self) -> str:
        return f"could not connect to {self.host} port {self.port}: {self.problem}"


class ConnectionBroken(NetworkError):
    """An established connection ended without the protocol's closing handshake (reset, EOF, TLS abort); it is dead."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the connection broke: {self.problem}"


class ProxyFailed(NetworkError):
    """The proxy did not open a tunnel; `status` is its HTTP status, if it sent one."""

    def __init__(self, problem: str, *, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status

    def __str__(self) -> str:
        return f"the proxy did not open a tunnel: {self.problem}"


class CertificateRejected(NetworkError):
    """The peer's certificate could not be verified, so nothing was sent; `problem` is the verifier's text."""

    def __init__(self, host: str, problem: str) -> None:
        super().__init__(host, problem)
        self.host = host
        self.problem = problem

    def __str__(self) -> str:
        return f"the certificate of {self.host} was rejected: {self.problem}"


class DeadlineExceeded(TowlineError, TimeoutError):
    """A wait of `seconds` for `what` timed out; you may repeat the call."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what = what
        self.seconds = seconds

    def __str__(self) -> str:
        return f"timed out after {self.seconds:g} s waiting for {self.what}"


class ProtocolFailed(TowlineError):
    """A protocol did not keep its contract: it raised, or returned something that the engine cannot use.

    `protocol` is its name. The error it raised is the cause.
    """

    def __init__(self, protocol: str, problem: str) -> None:
        super().__init__(protocol, problem)
        self.protocol = protocol
        self.problem = problem

    def __str__(self) -> str:
        return f"the protocol {self.protocol!r} failed: {self.problem}"


class UnexpectedFailure(TowlineError):
    """Code that Towline called raised an error of another type; that error is the cause and was logged.

    `who` names the called code (an attempt to connect, the store), `problem` the type of its error.
    """

    def __init__(self, who: str, problem: str) -> None:
        super().__init__(who, problem)
        self.who = who
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.who} raised {self.problem}"


class Exhausted(TowlineError):
    """The engine has given up and will not reconnect by itself; `connect()` or `retry()` starts again.

    `reason` is one of `budget` (the retries or the time of an outage are used up), `auth` (the server never accepted
    the token), `revoked` (the server accepted this connection before and rejects it now), `protocol` (the server
    refuses or breaks the protocol), `gone` (the server does not know the job), `stalled` (the job was silent for
    `Policy.stall_limit`) and `usage` (an argument or an environment variable is unusable, and the text names it).
    `cause` describes the last failure; if that was an exception, it is also `__cause__`. This error does not mean that
    the job has failed: the job may continue without a follower.
    """

    def __init__(self, reason: str, cause: str) -> None:
        super().__init__(reason, cause)
        self.reason = reason
        self.cause = cause

    def __str__(self) -> str:
        if self.reason == "revoked":
            known = "the server accepted this connection before and rejects it now: pass a fresh token"
            return f"gave up ({self.reason}): {known}, or the job may have ended; last failure: {self.cause}"
        return f"gave up ({self.reason}): {self.cause}"


# --- the job hub -----------------------------------------------------------------------------------------------


class HubStorageError(TowlineError):
    """An operation on the hub's log failed: nothing of the call was saved, and the call may be repeated.

    `path` is the database, if there is one.
    """

    def __init__(self, problem: str, *, path: Path | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        return self.problem if self.path is None else f"{self.path}: {self.problem}"


class JobFailure(TowlineError):
    """Raise it in a job's function to end the job as failed, with a text for its followers.

    `code` is for programs, `message` for people, `details` any JSON value. `retryable` says whether a new job with
    the same input may succeed.
    """

    def __init__(self, code: str, message: str, *, details: object = None, retryable: bool = False) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = details
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


# --- the token store -------------------------------------------------------------------------------------------


class TokenStoreError(TowlineError):
    """An operation on the token store failed. `path` is the file or folder concerned, if any."""

    def __init__(self, problem: str, *, path: Path | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        return self.problem if self.path is None else f"{self.path}: {self.problem}"


class Locked(TokenStoreError):
    """The keyring that holds the store's key is locked, or did not answer in time; unlock it and call again."""


class KeyUnavailable(TokenStoreError):
    """The key that protects this store is not available; the records are unchanged. Restore the key."""


class Damaged(TokenStoreError):
    """A file is not as Towline wrote it; it is left in place so that you can inspect it."""


class WrongKey(TokenStoreError):
    """The given key is not the one that protects this store; the records are unchanged."""


class RecordMismatch(TokenStoreError):
    """The record belongs to another job or server than the requested one; its token is withheld."""


class AmbiguousJob(TokenStoreError):
    """Several servers' jobs with this id are on record: pass the URL of the one you mean.

    `servers` names them by protocol and address (origin and path).
    """

    def __init__(self, job: str, servers: Iterable[str]) -> None:
        self.job = job
        self.servers = tuple(servers)
        super().__init__(
            f"job {job!r} is on record for {len(self.servers)} servers ({', '.join(self.servers)}): "
            "pass the URL of the one you mean (url=, or --url on the command line)"
        )


class UnsafePermissions(TokenStoreError):
    """Other users can read or replace the files; fix the owner or mode that the message names."""


class UnknownVersion(TokenStoreError):
    """Another version of Towline wrote the store, and this one cannot read it; nothing was changed."""


class ReadFailed(TokenStoreError):
    """A file or folder exists but cannot be read (not permitted, disk error, locked for too long)."""


class WriteFailed(TokenStoreError):
    """The change was not saved safely (disk full, read-only, not permitted); the earlier content is still there.

    If only the last step failed, the sync of the folder, then the whole change can be read, but a power cut could
    undo it. You may repeat the call.
    """
