"""The way to the network: opens a byte stream to an endpoint.

Errors of the operating system, of anyio and of TLS become our errors here and nowhere else.
"""

from __future__ import annotations

import functools
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from ..._exceptions import (
    CertificateRejected,
    ConnectFailed,
    ConnectionBroken,
    InvalidArgument,
    NameNotResolved,
    ProxyFailed,
)
from .._url import URL, is_address, is_localhost
from ._dialling import dial_address, dial_name, dial_unix, literal
from ._proxy import Proxy, open_tunnel, parse_proxy, proxy_from_environment
from ._socket_stream import SocketStream
from ._timed_stream import TimedStream
from ._tls import TLS, resume_sessions


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect. `host` is an A-label or an IP literal.

    `tls` is the context for TLS, None for a plain connection. The certificate must be valid for `server_name`. `zone`
    is an IPv6 literal's zone. An `absolute` name is looked up as it is, without a search list.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    zone: str | None = None
    absolute: bool = False


class Network:
    """How a server is reached: happy eyeballs (RFC 8305, without history), TLS 1.2 or later, and a proxy if one is set.

    - `proxy`: a URL such as `http://user:password@proxy:3128` or `socks5://proxy` (the extra `socks`). Without it, the
      environment's `https_proxy`, `all_proxy` and `no_proxy` apply, unless `trust_environment=False`. Connections
      without TLS never use a proxy; loopback never uses the environment's. `proxy_tls` is the context for an `https`
      proxy.
    - `tls`: the context of TLS connections; by default the system's certificates are trusted.
    - `allow_insecure`: allow connections without TLS to other hosts than this one.
    - `unix_socket`: a path to connect to instead of every host, without a proxy. Host names and certificates stay the
      same.

    A subclass may replace `connect`, for example to test without sockets.

    Raises `InvalidArgument` for a proxy that cannot be used.
    """

    # Defaults, for a subclass that replaces `connect` and has its own constructor.
    tls: ssl.SSLContext | None = None
    allow_insecure: bool = False

    def __init__(
        self,
        *,
        proxy: str | None = None,
        proxy_tls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        allow_insecure: bool = False,
        trust_environment: bool = True,
        unix_socket: str | PathLike[str] | None = None,
    ) -> None:
        self._proxy = None if proxy is None else parse_proxy(proxy)
        self._proxy_tls = proxy_tls
        self.tls = tls
        self.allow_insecure = allow_insecure
        self._trust_environment = trust_environment
        self._unix_socket = unix_socket

    async def connect(self, endpoint: Endpoint) -> ByteStream:
        """Open a stream, with TLS if the endpoint asks for it. Each call resolves the name again.

        Raises `NetworkError`: `NameNotResolved`, `ConnectFailed`, `CertificateRejected`, `ProxyFailed`. Has no
        deadline: the caller's cancel scope ends it, and no connection stays open then.
        """
        if endpoint.tls is None:
            return await self._dial(endpoint)
        proxy = self._proxy_for(endpoint)
        if proxy is None:
            return await start_tls(await self._dial(endpoint), endpoint)
        return await start_tls(await self._tunnel(proxy, endpoint), endpoint)

    def _proxy_for(self, endpoint: Endpoint) -> Proxy | None:
        if self._unix_socket is not None:
            return None
        if self._proxy is not None:
            return self._proxy
        return proxy_from_environment(endpoint.host, endpoint.port, os.environ) if self._trust_environment else None

    async def _tunnel(self, proxy: Proxy, endpoint: Endpoint) -> ByteStream:
        tls = (self._proxy_tls or default_tls()) if proxy.secure else None
        place = Endpoint(proxy.host, proxy.port, tls=tls, zone=proxy.zone)
        stream = await self._dial(place)
        if tls is not None:
            stream = await start_tls(stream, place)
        try:
            await open_tunnel(stream, proxy, endpoint.host, endpoint.port)
        except STREAM_ERRORS as error:
            await close_now(stream)
            raise ProxyFailed(broken(error).problem) from error
        except BaseException:
            await close_now(stream)
            raise
        return stream

    async def _dial(self, endpoint: Endpoint) -> ByteStream:
        host = endpoint.host
        with _renamed_dial_errors(endpoint):
            if self._unix_socket is not None:
                return await dial_unix(self._unix_socket)
            if is_localhost(host):
                # RFC 6761 section 6.3: the name is this machine, so no resolver is asked.
                try:
                    return await dial_address(literal("::1", endpoint.port))
                except OSError:
                    return await dial_address(literal("127.0.0.1", endpoint.port))
            if is_address(host):
                return await dial_address(literal(host, endpoint.port, endpoint.zone))
            return await dial_name(f"{host}." if endpoint.absolute else host, endpoint.port)


async def start_tls(stream: ByteStream, endpoint: Endpoint) -> ByteStream:
    """Add TLS to a stream as the endpoint asks; closes it on failure. Returns the stream to use from then on."""
    assert endpoint.tls is not None, "only an endpoint with TLS gets it"
    name = endpoint.server_name or endpoint.host
    try:
        with _renamed_tls_errors(endpoint):
            if isinstance(stream, SocketStream) and not stream.has_tls:
                await stream.start_tls(TLS(endpoint.tls, name, endpoint.port))
                return stream
            return await TLSStream.wrap(
                stream,
                server_side=False,
                hostname=name,
                ssl_context=endpoint.tls,
                # WebSocket and HTTP mark their own end (RFC 8446 section 6.1 leaves it to them).
                standard_compatible=False,
            )
    except BaseException:
        await close_now(stream)
        raise


@functools.cache
def default_tls() -> ssl.SSLContext:
    """The default TLS context: verifies certificates, needs TLS 1.2 or later, resumes sessions.

    Cached, because it loads every root certificate. Raises `InvalidArgument` with the variable's name if
    `SSLKEYLOGFILE`, `SSL_CERT_FILE` or `SSL_CERT_DIR` cannot be used.
    """
    try:
        context = ssl.create_default_context()
    except OSError as error:
        raise InvalidArgument(
            "SSLKEYLOGFILE",
            f"the file cannot be opened for writing ({_reason(error)}): change the variable or unset it",
        ) from error
    # OpenSSL silently skips a file that it cannot read; then every certificate is rejected.
    if file := os.environ.get("SSL_CERT_FILE"):
        try:
            context.load_verify_locations(cafile=file)
        except OSError as error:
            raise InvalidArgument(
                "SSL_CERT_FILE",
                f"no certificates can be read from the file ({_reason(error)}): change the variable or unset it",
            ) from error
    folders = os.environ.get("SSL_CERT_DIR")
    nothing_loaded = not context.cert_store_stats()["x509_ca"]
    if folders and nothing_loaded and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
        raise InvalidArgument(
            "SSL_CERT_DIR",
            "there is no such folder, and no other certificates are installed: change the variable or unset it",
        )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return resume_sessions(context)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def endpoint_of(url: URL, tls: ssl.SSLContext | None) -> Endpoint:
    """The endpoint of a URL. A plain URL never gets a TLS context; a secure one always has one."""
    origin = url.origin
    return Endpoint(
        origin.host,
        origin.port,
        tls=(tls or default_tls()) if origin.secure else None,
        server_name=origin.host if origin.secure else None,
        zone=url.zone,
        absolute=url.absolute,
    )


async def close_now(stream: ByteStream | TimedStream) -> None:
    """Close a stream at once, even in a cancelled task. Never waits for a stream that `Network` opened."""
    if isinstance(stream, SocketStream):
        stream.close()
        return
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 0.5):
        with suppress(*STREAM_ERRORS):  # it was broken already: closing is all we want
            await stream.aclose()


def is_quiet(stream: ByteStream) -> bool:
    """Whether an idle stream is open and no byte waits in it. True for a stream that cannot say: try it."""
    while isinstance(stream, TLSStream) and isinstance(stream.transport_stream, ByteStream):
        stream = stream.transport_stream
    return stream.is_quiet() if isinstance(stream, SocketStream) else True


# --- names of errors -------------------------------------------------------------------------------------------

#: Errors of a broken byte stream, other than its normal end. `ssl.SSLError` is an `OSError`.
STREAM_ERRORS: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.BusyResourceError, OSError)


def broken(error: BaseException) -> ConnectionBroken:
    """Translate an error of an established stream; raise the result `from` it."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    if isinstance(cause, ssl.SSLError):
        return ConnectionBroken(f"TLS: {cause.reason or 'broken'}")
    if isinstance(cause, OSError):
        return ConnectionBroken(cause.strerror or type(cause).__name__)
    return ConnectionBroken("the stream was closed" if isinstance(error, anyio.ClosedResourceError) else "reset")


@contextmanager
def _renamed_dial_errors(endpoint: Endpoint) -> Iterator[None]:
    try:
        yield
    except socket.gaierror as error:
        raise NameNotResolved(endpoint.host) from error
    except OSError as error:
        raise ConnectFailed(endpoint.host, endpoint.port, error.strerror or type(error).__name__) from error
    except UnicodeError as error:
        raise NameNotResolved(endpoint.host) from error


@contextmanager
def _renamed_tls_errors(endpoint: Endpoint) -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise CertificateRejected(endpoint.server_name or endpoint.host, error.verify_message or "not valid") from error
    except ssl.SSLError as error:
        raise ConnectFailed(endpoint.host, endpoint.port, f"TLS: {error.reason or 'failed'}") from error
    except anyio.EndOfStream as error:
        raise ConnectFailed(endpoint.host, endpoint.port, "TLS: the stream ended in the handshake") from error
    except (anyio.BrokenResourceError, OSError) as error:
        raise ConnectFailed(endpoint.host, endpoint.port, f"TLS: {broken(error).problem}") from error
