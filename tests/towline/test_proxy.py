"""`Network(proxy=…)`: both the socket and the calls about the job go through it, or not at all."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, SocketStream

from towline import Backoff, Connection, Exhausted, InvalidArgument, Network, Policy
from towline.transport import default_tls

pytestmark = pytest.mark.anyio


async def test_the_proxy_is_asked_for_the_server_and_told_no_token() -> None:
    asked: list[bytes] = []

    async def refuse(stream: SocketStream) -> None:
        async with stream:
            asked.append(await stream.receive())
            await stream.send(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, refuse)
        line = Connection(
            "wss://jobs.example.test/ws/progress",
            job="j1",
            token="hunter2",
            network=Network(proxy=f"http://127.0.0.1:{port}"),
            policy=Policy(backoff=Backoff(attempts=0)),
        )
        with pytest.raises(Exhausted, match="proxy"):
            async with line:
                await line.result()
        tasks.cancel_scope.cancel()
    await listener.aclose()
    # The upgrade, and the last look at the job's state.
    assert [request.partition(b"\r\n")[0] for request in asked] == [b"CONNECT jobs.example.test:443 HTTP/1.1"] * 2
    assert not any(b"hunter2" in request for request in asked)


async def test_a_proxy_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument):
        Network(proxy="ftp://127.0.0.1")


@pytest.mark.parametrize("variable", ["https_proxy", "SSL_CERT_FILE", "SSLKEYLOGFILE"])
async def test_a_variable_that_cannot_be_used_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """Time does not change it, so no attempt of the budget is spent on it."""
    default_tls.cache_clear()
    monkeypatch.setenv(variable, str(tmp_path / "nowhere" / "file"))
    line = Connection("wss://jobs.example.test/ws/progress", job="j1", token="hunter2")
    with pytest.raises(Exhausted, match=variable) as caught:
        async with line:
            await line.result()
    assert caught.value.reason == "usage"
    assert isinstance(caught.value.__cause__, InvalidArgument)
    assert caught.value.__cause__.name == variable
    assert line.statistics().retries == 0
