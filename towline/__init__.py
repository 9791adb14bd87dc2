"""Towline: follow a long-running job over a WebSocket to its true end.

    async with towline.Connection("wss://api.example/ws/progress", job="j1", token=token) as line:
        async for update in line:
            print(line.state, update)
    print(line.outcome)

See `Connection` for everything else.
"""

from ._connection import Connection, Statistics
from ._exceptions import (
    Cancelled,
    CertificateRejected,
    ConnectFailed,
    ConnectionBroken,
    ConnectionClosed,
    Damaged,
    DeadlineExceeded,
    Exhausted,
    ForbiddenRequest,
    HandshakeRefused,
    InvalidArgument,
    JobEnded,
    KeyUnavailable,
    Locked,
    MalformedMessage,
    MessageTooBig,
    NameNotResolved,
    NetworkError,
    ProtocolViolation,
    ProxyFailed,
    ReadFailed,
    RecordMismatch,
    RemoteError,
    StateUnreachable,
    TableError,
    TokenProviderFailed,
    TokenRefused,
    TokenStoreError,
    TowlineError,
    UnexpectedFailure,
    UnexpectedResponse,
    UnknownVersion,
    UnsafePermissions,
    UsageError,
    WriteFailed,
    WrongKey,
)
from ._secret import Secret
from ._text import escape
from ._updates import (
    AnyUpdate,
    JobCanceled,
    JobComplete,
    JobFailed,
    JobStarted,
    Outcome,
    Progress,
    Resynced,
    Stalled,
    StateChange,
    Update,
)
from .engine.delivery import Subscription
from .engine.tokens import Token, TokenProvider
from .sources import Templates
from .statemachine import Backoff, Cause, Policy, Recording, State
from .storage import MemoryTokenStore, Store, TokenStore
from .transport import Limits, Network, WebSocket, open_websocket

__version__ = "0.1.0"

__all__ = [
    "AnyUpdate",
    "Backoff",
    "Cancelled",
    "Cause",
    "CertificateRejected",
    "ConnectFailed",
    "Connection",
    "ConnectionBroken",
    "ConnectionClosed",
    "Damaged",
    "DeadlineExceeded",
    "Exhausted",
    "ForbiddenRequest",
    "HandshakeRefused",
    "InvalidArgument",
    "JobCanceled",
    "JobComplete",
    "JobEnded",
    "JobFailed",
    "JobStarted",
    "KeyUnavailable",
    "Limits",
    "Locked",
    "MalformedMessage",
    "MemoryTokenStore",
    "MessageTooBig",
    "NameNotResolved",
    "Network",
    "NetworkError",
    "Outcome",
    "Policy",
    "Progress",
    "ProtocolViolation",
    "ProxyFailed",
    "ReadFailed",
    "RecordMismatch",
    "Recording",
    "RemoteError",
    "Resynced",
    "Secret",
    "Stalled",
    "State",
    "StateChange",
    "StateUnreachable",
    "Statistics",
    "Store",
    "Subscription",
    "TableError",
    "Templates",
    "Token",
    "TokenProvider",
    "TokenProviderFailed",
    "TokenRefused",
    "TokenStore",
    "TokenStoreError",
    "TowlineError",
    "UnexpectedFailure",
    "UnexpectedResponse",
    "UnknownVersion",
    "UnsafePermissions",
    "Update",
    "UsageError",
    "WebSocket",
    "WriteFailed",
    "WrongKey",
    "escape",
    "open_websocket",
]
