"""Event streams through real proxies: each event at once, and a client that leaves is noticed."""

from pathlib import Path
from typing import Any

import anyio
import pytest
from interop.event_stream import followed, opened
from interop.proxies import PROXIES, Proxy

from towline.server import Hub, HubLimits, JobContext, Upload

STEPS = 5


async def stepping(context: JobContext, upload: Upload) -> None:
    """Take each step when the test has put a file of its number into the job's folder."""
    for step in range(1, STEPS + 1):
        while not await anyio.Path(context.directory / str(step)).exists():  # noqa: ASYNC110 - put there by the test
            await anyio.sleep(0.005)
        await context.progress(step, STEPS)


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.part)
def test_a_proxy_passes_each_event_on_at_once(
    proxy: Proxy, tmp_path: Path, serving: Any, client_of: Any, eventually: Any
) -> None:
    """A proxy that buffers would show the first step only after the last, and this test would wait for ever."""
    if (missing := proxy.missing()) is not None:
        pytest.skip(missing)
    hub = Hub(tmp_path / "hub.db", limits=HubLimits(comment_every=0.2))
    hub.job("stepping", path="/start")(stepping)
    with serving(hub) as client:
        assert client.start(b"x", "/start", content_type="application/octet-stream").status_code == 202
        process = proxy.process(tmp_path, int(client.url.rpartition(":")[2]), timeout=1)
        process.start()
        try:
            with client_of(f"http://127.0.0.1:{process.port}") as far:
                far.job, far.token = client.job, client.token
                with opened(far) as stream:
                    assert stream.response.headers["content-type"] == "text/event-stream"
                    for step in range(1, STEPS):
                        (hub.directory(client.job) / str(step)).touch()
                        stream.read(lambda stream, step=step: stream.seqs == list(range(1, step + 2)))
                    stream.read(lambda stream: stream.comments >= 8)  # for longer than the proxy waits in silence
                eventually(lambda: hub.statistics().streams == 0)
                with opened(far, stream.last_id) as rest:
                    (hub.directory(client.job) / str(STEPS)).touch()
                    rest.read()
                assert (rest.whole, stream.seqs + rest.seqs) == (True, list(range(1, STEPS + 3)))
                assert stream.texts + rest.texts == followed(far).texts == followed(client).texts
        finally:
            process.end()
