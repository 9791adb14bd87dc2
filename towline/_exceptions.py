"""Every error Towline raises, in one tree.

This is the one module that each layer may import: it imports nothing itself.

The tree says who is at fault::

    TowlineError
    ├── UsageError                 the calling program: mend the call
    │   ├── InvalidArgument        (a ValueError) a value that cannot be right
    │   ├── ForbiddenRequest       the request is not lawful in the present state
    │   │   ├── JobEnded           ... because the job has ended
    │   │   └── Cancelled          ... because cancel() was called: final
    │   ├── StateUnreachable       what was waited for cannot happen any more
    │   ├── TokenProviderFailed    the program's token provider raised, or gave no token
    │   └── TableError             a state table that does not hold together
    ├── RemoteError                the peer
    │   ├── ProtocolViolation      it sent bytes that no server may send
    │   ├── MalformedMessage       it sent a message that does not fit its type
    │   ├── MessageTooBig          it sent more than the limits allow
    │   ├── HandshakeRefused       it answered the upgrade with something else than 101
    │   ├── UnexpectedResponse     it answered an HTTP call with something we cannot use
    │   ├── TokenRefused           it (or the token provider) will give no token
    │   └── ConnectionClosed       it ended the WebSocket, or we did
    ├── NetworkError               what lies between
    │   ├── NameNotResolved
    │   ├── ConnectFailed
    │   ├── ConnectionBroken
    │   ├── ProxyFailed
    │   └── CertificateRejected    the peer's certificate could not be verified
    ├── DeadlineExceeded           (a TimeoutError) nobody answered in time
    ├── UnexpectedFailure          code outside Towline raised something else: `network=`, `store=`, a library
    ├── Exhausted                  the engine has given up; `reason` says why
    ├── HubStorageError            the job hub's log cannot be used, or did not take a write
    ├── JobFailure                 raised by a job's own function: how that job failed
    └── TokenStoreError            the token store
        ├── Locked                 the keyring is locked, or did not answer
        ├── KeyUnavailable         the key that wrapped the store is not to be had
        ├── Damaged                a file is not what was written
        ├── WrongKey               the key given is not the one that wrapped the store
        ├── RecordMismatch         a record speaks of another job or origin
        ├── UnsafePermissions      others could read or replace the files
        ├── UnknownVersion         written by a newer Towline
        ├── ReadFailed             a file is there and could not be read
        └── WriteFailed            nothing was saved; what stood there before still stands

Facts are fields, the sentence is made in `__str__`, the cause is `__cause__`. No error holds a token, a header or
bytes of a message. Unless a docstring says otherwise, the object that raised is still usable.
"""

from __future__ import annotations

from pathlib import Path


class TowlineError(Exception):
    """Base of every error that Towline raises on purpose."""


# --- the calling program ---------------------------------------------------------------------------------------


class UsageError(TowlineError):
    """The calling program asked for something that cannot be; nothing has changed."""


class InvalidArgument(UsageError, ValueError):
    """A value that cannot be right (a URL, a header, a job id, a number of a policy); nothing was begun."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class ForbiddenRequest(UsageError):
    """The request is not lawful in the state the connection is in; the state is unchanged and still usable."""

    def __init__(self, request: str, state: str, why: str) -> None:
        super().__init__(request, state, why)
        self.request = request
        self.state = state
        self.why = why

    def __str__(self) -> str:
        return f"{self.request} is not possible while {self.state}: {self.why}"


class JobEnded(ForbiddenRequest):
    """The job has ended, so there is nothing to connect to; the connection's `outcome` holds how it ended."""


class Cancelled(ForbiddenRequest):
    """`cancel()` was called on this connection, which is final; make a new `Connection`."""


class StateUnreachable(UsageError):
    """What was waited for cannot happen from the state the connection is in; it is still usable."""

    def __init__(self, wanted: str, state: str, hint: str = "") -> None:
        super().__init__(wanted, state, hint)
        self.wanted = wanted
        self.state = state
        self.hint = hint

    def __str__(self) -> str:
        told = f"{self.wanted} cannot come about while {self.state}"
        return f"{told}: {self.hint}" if self.hint else told


class TokenProviderFailed(UsageError):
    """The program's token provider raised, or gave no token; the engine tries again, within its budget.

    `problem` says which; an error that was raised is the cause.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        # Not the provider's own text: it may quote the token.
        return f"the token provider {self.problem}"


class TableError(UsageError):
    """A state table has a hole or a contradiction. `findings` lists every one, a sentence each."""

    def __init__(self, findings: tuple[str, ...]) -> None:
        super().__init__(findings)
        self.findings = findings

    def __str__(self) -> str:
        return f"{len(self.findings)} findings in the state table: " + "; ".join(self.findings)


# --- the peer --------------------------------------------------------------------------------------------------


class RemoteError(TowlineError):
    """The peer did something that ends this exchange."""


class ProtocolViolation(RemoteError):
    """The peer sent bytes that the protocol forbids; this socket or exchange is dead.

    `close_code` is what we told it (RFC 6455 section 7.4.1), or None where the handshake had not ended.
    """

    def __init__(self, problem: str, close_code: int | None = None) -> None:
        super().__init__(problem, close_code)
        self.problem = problem
        self.close_code = close_code

    def __str__(self) -> str:
        return f"the server broke the protocol: {self.problem}"


class MalformedMessage(RemoteError):
    """A message is not JSON, or does not fit its type; it was skipped and the socket lives on.

    `type` is the message's type where it could be read, `path` where the trouble is (`$.payload.progress`). A frame's
    `job_id`, `epoch` and `seq` are kept where they could be read: it had its place in the log all the same.
    """

    def __init__(
        self,
        type: str | None,  # noqa: A002 - the wire's own word
        path: str,
        problem: str,
        *,
        job_id: str = "",
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
        return f"a message of type {self.type!r} does not fit at {self.path}: {self.problem}"


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

    `retry_after` is the server's advice in seconds, already turned from a date where it was one. `body` is at most
    64 KiB of what came with the answer; it is the server's text, to be escaped before it is shown.
    """

    def __init__(self, status: int, *, retry_after: float | None = None, body: bytes = b"") -> None:
        super().__init__(status)
        self.status = status
        self.retry_after = retry_after
        self.body = body

    def __str__(self) -> str:
        advice = "" if self.retry_after is None else f", and asks to come back in {self.retry_after:g} s"
        return f"the server refused the WebSocket with HTTP status {self.status}{advice}"


class UnexpectedResponse(RemoteError):
    """An HTTP call was answered with something that cannot be used; the call may be made again.

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
    """No token is to be had: raise it from a token provider to say that asking again is of no use."""

    def __init__(self, problem: str = "no token is to be had") -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class ConnectionClosed(RemoteError):
    """The WebSocket has ended; the socket is dead, whatever was received before it stays delivered.

    `code` and `reason` are the peer's close frame (RFC 6455 section 7.1.5), with 1005 for a frame without a code and
    1006 for an end without a frame. `sent_code` is what we sent, or None. `by_us` says who spoke first.
    """

    def __init__(self, code: int, reason: str = "", *, sent_code: int | None = None, by_us: bool = False) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.sent_code = sent_code
        self.by_us = by_us

    def __str__(self) -> str:
        who = "we" if self.by_us else "the server"
        # The reason is the server's text: repr() escapes what a terminal would obey.
        why = f" ({self.reason!r})" if self.reason else ""
        return f"{who} closed the WebSocket with code {self.code}{why}"


# --- what lies between -----------------------------------------------------------------------------------------


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
    """No address of the host took the connection; `problem` is the operating system's own word."""

    def __init__(self, host: str, port: int, problem: str) -> None:
        super().__init__(host, port, problem)
        self.host = host
        self.port = port
        self.problem = problem

    def __str__(self) -> str:
        return f"could not connect to {self.host} port {self.port}: {self.problem}"


class ConnectionBroken(NetworkError):
    """An established connection ended without the protocol's farewell (reset, EOF, TLS torn down); it is dead."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the connection broke: {self.problem}"


class ProxyFailed(NetworkError):
    """The proxy did not open the way; `status` is its HTTP status where it gave one."""

    def __init__(self, problem: str, *, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status

    def __str__(self) -> str:
        return f"the proxy did not open the way: {self.problem}"


class CertificateRejected(NetworkError):
    """The peer's certificate could not be verified, so nothing was sent; `problem` is the verifier's word."""

    def __init__(self, host: str, problem: str) -> None:
        super().__init__(host, problem)
        self.host = host
        self.problem = problem

    def __str__(self) -> str:
        return f"the certificate of {self.host} was rejected: {self.problem}"


class DeadlineExceeded(TowlineError, TimeoutError):
    """`what` did not happen within `seconds`; asking again is lawful."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what = what
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.what} did not happen within {self.seconds:g} s"


class UnexpectedFailure(TowlineError):
    """Code that Towline called raised an error that is none of these; the error is the cause, and was logged.

    `who` names what was called (an attempt to connect, the store), `problem` the kind of the error.
    """

    def __init__(self, who: str, problem: str) -> None:
        super().__init__(who, problem)
        self.who = who
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.who} raised {self.problem}"


class Exhausted(TowlineError):
    """The engine makes no further attempt by itself; `connect()` or `retry()` begins anew.

    `reason` is one of `budget` (the retries or the time of an outage are spent), `auth` (the token was never accepted),
    `revoked` (the server accepted this token before and rejects it now), `protocol` (the server refuses or breaks the
    protocol), `gone` (the server does not know the job), `stalled` (the job was silent for `Policy.stall_limit`) and
    `usage` (an argument or an environment variable cannot be used, and the text names it).
    `cause` describes the last failure and is `__cause__` too where it was an exception. It does not mean that the job
    has failed: the job may go on without a follower.
    """

    def __init__(self, reason: str, cause: str) -> None:
        super().__init__(reason, cause)
        self.reason = reason
        self.cause = cause

    def __str__(self) -> str:
        if self.reason == "revoked":
            known = "the server accepted this token before and rejects it now, so the job may have ended"
            return f"gave up ({self.reason}): {known}; last failure: {self.cause}"
        return f"gave up ({self.reason}): {self.cause}"


# --- the job hub -----------------------------------------------------------------------------------------------


class HubStorageError(TowlineError):
    """The hub's log could not do what was asked: nothing of the failed call was kept, and it may be made again.

    `path` is the database it speaks of, where there is one.
    """

    def __init__(self, problem: str, *, path: Path | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        return self.problem if self.path is None else f"{self.path}: {self.problem}"


class JobFailure(TowlineError):
    """Raise it in a job's function to end the job as failed, with words its watcher can use.

    `code` is for programs, `message` for people, `details` any JSON value; `retryable` says whether a new job with
    the same input may do better.
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
    """The token store could not do what was asked. `path` is the file or folder it speaks of, if any."""

    def __init__(self, problem: str, *, path: Path | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        return self.problem if self.path is None else f"{self.path}: {self.problem}"


class Locked(TokenStoreError):
    """The keyring that holds the store's key is locked, or did not answer in time; unlock it and call again."""


class KeyUnavailable(TokenStoreError):
    """The key that wrapped this store is not to be had; the records are untouched. Bring the key back."""


class Damaged(TokenStoreError):
    """A file is not what was written; it is left in place for a person to see."""


class WrongKey(TokenStoreError):
    """The key given is not the one that wrapped this store; the records are untouched."""


class RecordMismatch(TokenStoreError):
    """A record was opened that speaks of another job or origin than was asked for; its token is not given out."""


class UnsafePermissions(TokenStoreError):
    """Others could read or replace the files; mend the owner or mode that the message names."""


class UnknownVersion(TokenStoreError):
    """The store was written by a newer Towline; nothing was changed. Upgrade."""


class ReadFailed(TokenStoreError):
    """A file or folder is there and could not be read (not permitted, disk error, locked for too long)."""


class WriteFailed(TokenStoreError):
    """The change was not made safe (disk full, read-only, not permitted); what stood there before still stands.

    If the very last step failed, the folder's own sync, the change is there to be read, whole, but a power cut
    could take it back. Calling again is lawful.
    """
