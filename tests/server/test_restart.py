"""A hub that is killed or stopped in mid-job: its clients lose nothing, and its jobs go on where they were."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from towline import ForbiddenRequest
from towline.server import Hub, HubStorageError, read_events
from towline.server.log._sqlite import SqliteLog

ROWS = 120
CSV = b"title,author,isbn\n" + b"".join(b"Book %d,Somebody,9780306406157\n" % n for n in range(ROWS))


def check(log: list[Any], seen: list[dict[str, Any]]) -> None:
    """What a client saw over several sockets is the log: every event once, in order, one end, one epoch."""
    assert [event["seq"] for event in seen] == list(range(1, len(log) + 1))
    assert [(e.seq, e.epoch, e.type, e.payload) for e in log] == [
        (e["seq"], e["epoch"], e["type"], e["payload"]) for e in seen
    ]
    counts = [e["payload"]["processedCount"] for e in seen if e["type"] == "job_progress"]
    assert counts == list(range(1, ROWS + 1))
    assert [e["type"] for e in seen].count("job_complete") == 1
    assert seen[-1]["payload"]["successRate"] == f"{ROWS}/{ROWS}"
    assert len(seen[-1]["payload"]["books"]) == ROWS


def test_killed_in_mid_job(hub_process: Any, ready: Any, following: Any) -> None:
    hub = hub_process(row_delay=0.005)
    client = hub.start()
    client.start(CSV)
    seen: list[dict[str, Any]] = []
    for stop in (20, 50, 90):
        with client.socket() as socket:
            ready(socket, {"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]} if seen else None)
            seen += following(socket, lambda frame, stop=stop: frame["seq"] >= stop).events
            hub.kill()
            # What was on its way when the hub died still counts.
            seen += following(socket).events
        hub.start()
    seen += client.follow({"epoch": seen[-1]["epoch"], "seq": seen[-1]["seq"]}).events
    assert hub.terminate() == 0
    check(read_events(hub.database, client.job), seen)
    assert [path.name for path in Path(f"{hub.database}.files").iterdir()] == ["hub-id"]


def test_stopped_in_mid_job(hub_process: Any, ready: Any, following: Any) -> None:
    hub = hub_process(row_delay=0.005)
    client = hub.start()
    client.start(CSV)
    with client.socket() as socket:
        ready(socket)
        threading.Timer(0.1, hub.send_terminate).start()
        first = following(socket)
    assert first.code == 1012
    advice = json.loads(first.reason)
    assert advice["retry_in"] > 0
    assert advice["spread"] >= 1
    assert hub.wait() == 0
    hub.start()
    rest = client.follow(first.cursor if first.events else None)
    check(read_events(hub.database, client.job), first.events + rest.events)


def test_ended_while_nobody_was_there(hub_process: Any, eventually: Any) -> None:
    hub = hub_process()
    client = hub.start()
    client.start(CSV)
    hub.kill()
    hub.start()
    eventually(lambda: client.state()["status"] == "complete")
    check(read_events(hub.database, client.job), client.follow().events)


def test_uploads_that_never_became_jobs_are_removed(hub_process: Any) -> None:
    hub = hub_process()
    leftover = Path(f"{hub.database}.files") / f"incoming-{'0' * 32}"
    others = leftover.with_name("letters")
    for folder in (leftover, others):
        folder.mkdir(parents=True)
        (folder / "upload").write_bytes(b"half of")
    hub.start()
    assert not leftover.exists()
    assert (others / "upload").exists()  # the folder may hold what is not the hub's


@pytest.mark.anyio
async def test_a_hub_is_entered_once(tmp_path: Path) -> None:
    """It would be there, and refuse every start as one that is about to stop."""
    hub = Hub(tmp_path / "hub.db")
    async with hub:
        pass
    with pytest.raises(ForbiddenRequest, match="once"):
        async with hub:
            pass


@pytest.mark.anyio
async def test_a_database_has_one_hub(hub_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towline.server.log._sqlite._OWNER_WAIT", 0.01)
    hub = hub_process()
    hub.start()
    with pytest.raises(HubStorageError, match=r"another hub \(process \d+\) uses this database: stop it, or give"):
        async with SqliteLog(hub.database):
            pass
    hub.kill()
    async with SqliteLog(hub.database):
        pass
