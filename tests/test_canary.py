"""The canary through a whole life: stored, sent, refused, refreshed, cut off, resumed, and never shown."""

from __future__ import annotations

import logging
import pprint
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from towline import Connection, State, TowlineError
from towline._secret import Secret
from towline.storage import KeyFile, MemoryTokenStore, RecordKey, TokenStore
from towline.testing import ScriptedServer, virtual_time, virtual_time_backends
from towline.transport import parse_url

URL = "ws://hub/ws/progress"


@pytest.fixture(params=virtual_time_backends())
def virtual(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return virtual_time(request.param)


def shown(*objects: object) -> str:
    """Objects as programs and people print them."""
    return "".join(f"{one!r} {one} {pprint.pformat(one)}" for one in objects)


def test_a_connection_shows_nothing(canary: str, virtual: tuple[str, dict[str, object]]) -> None:
    async def live() -> str:
        store = MemoryTokenStore()
        async with ScriptedServer() as server:
            job = server.job("j1", token=canary)
            job.start(total_count=2)
            line = Connection(URL, job="j1", token=canary, store=store, network=server.network)
            async with line:
                await line.wait_for(State.CONNECTED, timeout=5)
                job.progress(0.5, processed=1)
                server.socket.cut("rst")
                job.complete({"books": [], "errors": [], "successRate": "2/2"})
                updates = [update async for update in line]
            wrong = Connection(URL, job="j1", token=f"{canary}-wrong", network=server.network)
            failure: object = None
            try:
                async with wrong:
                    await wrong.result()
            except (TowlineError, ExceptionGroup) as exc:
                failure = exc
            assert failure is not None
            lines = [part for one in (line, wrong) for part in (one, one.statistics(), one.history())]
            return shown(*lines, *updates, failure, store, await store.find("j1"))

    backend, options = virtual
    assert canary not in anyio.run(live, backend=backend, backend_options=options)


@pytest.mark.anyio
async def test_a_store_shows_nothing(canary: str, tmp_path: Path) -> None:
    provider = KeyFile(tmp_path / "config" / "key")
    store = TokenStore(tmp_path / "tokens", provider=provider)
    key = RecordKey("towline", parse_url(URL, allow_insecure=True).address, "j1")
    await store.save(key, canary, parameters={"url": URL}, secrets={"X-Key": canary})
    record = await store.read(key)
    assert record is not None
    assert (record.token, dict(record.secrets)) == (Secret(canary), {"X-Key": Secret(canary)})
    found = [store, provider, record, await store.verify(), await store.find("j1")]
    with pytest.raises(TowlineError) as caught:
        record.for_address("towline", "https://evil.example:443/ws/progress")
    assert canary not in shown(*found, caught.value)
    for path in (tmp_path / "tokens").iterdir():
        assert canary.encode() not in path.read_bytes()
    for arguments in (["list"], ["list", "--json"], ["show", "j1"], ["show", "j1", "--json"]):
        listed = await anyio.run_process(
            [sys.executable, "-P", "-m", "towline", "tokens", *arguments, "--store", str(tmp_path / "tokens")],
            env={"XDG_CONFIG_HOME": str(tmp_path)},
            check=False,
        )
        assert canary.encode() not in listed.stdout + listed.stderr


def test_the_watch_sees_what_it_should(canary: str) -> None:
    watch = next(handler for handler in logging.getLogger("towline").handlers if type(handler).__name__ == "_Log")
    found: list[str] = sys.modules[type(watch).__module__].FOUND
    before = len(found)
    watch.handle(logging.makeLogRecord({"msg": "%s", "args": (canary,)}))
    watch.handle(logging.makeLogRecord({"msg": "nothing", "also": canary}))
    subprocess.run([sys.executable, "-c", "", canary], check=True)
    subprocess.run([sys.executable, "-c", ""], env={"X": canary}, check=True)
    new = found[before:]
    del found[before:]
    assert [one.split(":")[0] for one in new[:2]] == ["the log of None"] * 2
    assert sum("child: subprocess.Popen" in one for one in new) == 2  # which may tell of a spawn besides
