"""WebSocket and HTTP without I/O, and the code that runs them over anyio. It knows no jobs.

As a plain client::

    async with open_websocket("wss://api.example/feed", headers={"Authorization": "Bearer ..."}) as ws:
        async for message in ws:
            await ws.send(message)

To integrate a WebSocket into your own loop, as the engine does:

1. Check the URL once with `parse_url`. `URL` gives its origin, other paths there over HTTP (`at`), and a text without
   the query.
2. Call `connect_websocket`. It connects and makes the handshake within one deadline; a refusal raises
   `HandshakeRefused`.
3. Let one task call `receive_batch` in a loop. It answers pings, and its errors say how the connection ended. Messages
   that arrived before the end come first.
4. Send from any task with `send`. Cancelling a send half-way ends the connection.
5. Call `probe` when the network has changed. It pings, and the receiving task raises if no byte arrives in time.
6. End with `aclose` (waits for the peer, bounded), `abandon` (sends a close frame, does not wait) or
   `aclose_forcefully`.

`request` and `stream_response` make any HTTP call; `HTTPClient` makes many to one origin over one connection. To follow
an event stream::

    accept = {"Accept": "text/event-stream"}
    async with stream_response("GET", url, headers=accept, silence=60, max_body=None) as response:
        if response.status == 200 and is_event_stream(response.headers.header(b"content-type")):
            parser = EventParser()
            async for data in response:
                for event in parser.feed(data):
                    ...

Connect again with `Last-Event-ID: {parser.last_id}`, after `parser.retry` seconds or more. 204 means: do not.

A subclass of `Network` replaces the code that connects: use memory streams to test without sockets. To work without
anyio, drive `ClientHandshake` and `WebSocketProtocol` yourself: bytes in, messages out. Their docstrings give the order
of calls.
"""

from .._headers import Headers, check_subprotocols
from ._limits import Limits, Liveness
from ._url import URL, Origin, check_headers, parse_origin, parse_url
from .http._client import Download, HTTPClient, Response, Upload, request, stream_response
from .http._event_stream import MAX_RETRY, EventParser, LineParser, StreamEvent, is_event_stream
from .http._protocol import Head, HTTPExchange, parse_retry_after
from .net._network import Endpoint, Network, default_tls
from .net._tls import resume_sessions
from .websocket._deflate import Deflate
from .websocket._framing import Message
from .websocket._handshake import Accepted, ClientHandshake, Refused
from .websocket._protocol import WebSocketProtocol
from .websocket._websocket import WebSocket, WebSocketStatistics, connect_websocket, open_websocket

__all__ = [
    "MAX_RETRY",
    "URL",
    "Accepted",
    "ClientHandshake",
    "Deflate",
    "Download",
    "Endpoint",
    "EventParser",
    "HTTPClient",
    "HTTPExchange",
    "Head",
    "Headers",
    "Limits",
    "LineParser",
    "Liveness",
    "Message",
    "Network",
    "Origin",
    "Refused",
    "Response",
    "StreamEvent",
    "Upload",
    "WebSocket",
    "WebSocketProtocol",
    "WebSocketStatistics",
    "check_headers",
    "check_subprotocols",
    "connect_websocket",
    "default_tls",
    "is_event_stream",
    "open_websocket",
    "parse_origin",
    "parse_retry_after",
    "parse_url",
    "request",
    "resume_sessions",
    "stream_response",
]
