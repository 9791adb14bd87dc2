"""Sans-IO WebSocket and HTTP, and what drives them over anyio.

As a plain client::

    async with open_websocket("wss://api.example/feed", headers={"Authorization": "Bearer ..."}) as ws:
        async for message in ws:
            await ws.send(message)

To integrate it into a loop of your own, as the engine does:

1. check the URL once with `parse_url`; `URL` knows its origin, its HTTP twin (`at`) and a text without the query;
2. `connect_websocket` dials and shakes hands within one deadline; a refusal is a `HandshakeRefused` with its facts;
3. let one task call `receive_batch` for ever: it answers pings, and its errors tell how the socket ended. Messages
   that came before the end are given first;
4. send from any task with `send`; a send that is cancelled half-way ends the socket;
5. call `probe` when the network has changed: it pings, and the receiving task raises if no byte answers in time;
6. part with `aclose` (waits for the peer, bounded), `abandon` (says so, waits for nobody) or `aclose_forcefully`.

`JobCalls` makes the HTTP calls about a job; `request` and `stream_response` make any. A `Network` of your own replaces
the dialling: give memory streams to test without sockets. To go without anyio altogether, drive `ClientHandshake` and
`WebSocketProtocol` yourself: bytes in, messages out; their docstrings give the order of calls.
"""

from ._codec import CancelAnswer, Codec, Result
from ._deflate import Deflate
from ._framing import Message
from ._handshake import Accepted, ClientHandshake, Refused
from ._http import Download, Response, Upload, request, stream_response
from ._http_protocol import Head, HTTPExchange, parse_retry_after
from ._job_calls import JobCalls, RefreshedToken, StartedJob, Templates
from ._limits import Limits, Liveness
from ._messages import (
    PIPELINES,
    AiScanResult,
    BatchEnrichmentResult,
    BoundingBox,
    CanceledPayload,
    CsvImportResult,
    EnrichedBook,
    ErrorFrame,
    ErrorPayload,
    Frame,
    ImportedBook,
    JobCanceledFrame,
    JobCompleteFrame,
    JobProgressFrame,
    JobStartedFrame,
    JobState,
    PingFrame,
    PongFrame,
    ProgressPayload,
    Ready,
    ReadyAckFrame,
    RejectedRow,
    ResultReference,
    ScannedBook,
    StartedPayload,
    TerminalFrame,
    UnknownFrame,
    encode,
    encode_payload,
)
from ._network import Endpoint, Network, SystemNetwork, default_tls, resume_sessions
from ._url import (
    URL,
    Headers,
    Origin,
    bearer,
    check_headers,
    check_subprotocols,
    encode_job_id,
    fill_template,
    parse_origin,
    parse_url,
)
from ._websocket import WebSocket, WebSocketStatistics, connect_websocket, open_websocket
from ._websocket_protocol import WebSocketProtocol

__all__ = [
    "PIPELINES",
    "URL",
    "Accepted",
    "AiScanResult",
    "BatchEnrichmentResult",
    "BoundingBox",
    "CancelAnswer",
    "CanceledPayload",
    "ClientHandshake",
    "Codec",
    "CsvImportResult",
    "Deflate",
    "Download",
    "Endpoint",
    "EnrichedBook",
    "ErrorFrame",
    "ErrorPayload",
    "Frame",
    "HTTPExchange",
    "Head",
    "Headers",
    "ImportedBook",
    "JobCalls",
    "JobCanceledFrame",
    "JobCompleteFrame",
    "JobProgressFrame",
    "JobStartedFrame",
    "JobState",
    "Limits",
    "Liveness",
    "Message",
    "Network",
    "Origin",
    "PingFrame",
    "PongFrame",
    "ProgressPayload",
    "Ready",
    "ReadyAckFrame",
    "RefreshedToken",
    "Refused",
    "RejectedRow",
    "Response",
    "Result",
    "ResultReference",
    "ScannedBook",
    "StartedJob",
    "StartedPayload",
    "SystemNetwork",
    "Templates",
    "TerminalFrame",
    "UnknownFrame",
    "Upload",
    "WebSocket",
    "WebSocketProtocol",
    "WebSocketStatistics",
    "bearer",
    "check_headers",
    "check_subprotocols",
    "connect_websocket",
    "default_tls",
    "encode",
    "encode_job_id",
    "encode_payload",
    "fill_template",
    "open_websocket",
    "parse_origin",
    "parse_retry_after",
    "parse_url",
    "request",
    "resume_sessions",
    "stream_response",
]
