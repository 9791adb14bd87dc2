"""`towline trace`."""

from __future__ import annotations

from pathlib import Path

import pytest
from dry_run import DryRun
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from towline import Connection
from towline.cli._app import app
from towline.statemachine import Connect, Entry, History, Journey, Opened, Passage, Policy, Recorder, State
from towline.testing import ScriptedServer, run_virtual, virtual_time_backends

EXAMPLE = Path(__file__).parents[2] / "examples" / "firmware"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["trace", *(str(argument) for argument in arguments)])


def recorded() -> History:
    driven, recorder = DryRun(), Recorder(Policy())
    for event in (Connect(), Opened(generation=1)):
        before = driven.snapshot
        taken = driven.take(event)
        recorder.record(
            before,
            Entry(
                event=event,
                facts=driven.facts,
                source=before.state,
                target=taken.snapshot.state,
                verdict=taken.verdict,
            ),
        )
    return recorder.history()


def test_a_history_is_shown_and_replays(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(recorded().to_json())
    told = run(tmp_path / "run.json", "--svg", tmp_path / "run.svg", "--map", tmp_path / "map.svg")
    assert told.exit_code == 0
    assert "connecting → syncing" in told.output
    assert "2 events replayed, none went another way" in told.output
    assert ">opened</text>" in (tmp_path / "run.svg").read_text()
    assert '<tspan class="moved">opened</tspan>' in (tmp_path / "map.svg").read_text()


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_the_history_of_a_real_connection_replays(tmp_path: Path, backend: str) -> None:
    (tmp_path / "history.json").write_bytes(run_virtual(followed, backend=backend).to_json())
    told = run(tmp_path / "history.json")
    assert told.exit_code == 0, told.output
    assert "connected → reconnecting" in told.output
    assert "connected → idle" in told.output


async def followed() -> History:
    """A job that was cut off twice, and ended."""
    async with ScriptedServer() as server:
        job = server.job("j1", token="t1")
        job.start(total_count=2)
        async with Connection("ws://hub/ws/progress", job="j1", token="t1", network=server.network) as line:
            for ending in ("rst", "fin"):
                await line.wait_for(State.CONNECTED)
                server.socket.cut(ending)  # type: ignore[arg-type]
                await line.wait_for(State.RECONNECTING)
            await line.wait_for(State.CONNECTED)
            job.complete({"books": [], "errors": [], "successRate": "2/2"})
            await line.result()
            return line.history()


def test_a_divergence_is_shown_and_fails(tmp_path: Path) -> None:
    history = recorded()
    entries = (history.entries[0], replace(history.entries[1], target=State.CONNECTED))
    (tmp_path / "run.json").write_bytes(replace(history, entries=entries).to_json())
    told = run(tmp_path / "run.json")
    assert told.exit_code == 1
    assert "event 2 (opened) goes another way: recorded connecting → connected (moved), now" in told.output
    assert "\n! " in told.output


def test_the_journey_of_a_table_of_one_s_own_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    way = [("install", "idle", "uploading", "moved"), ("done", "idle", "idle", "stale")]
    way += [("failed", "uploading", "kept", "moved"), ("done", "kept", "kept", "ignored")]
    fields = ("event", "source", "target", "verdict")
    passages = [Passage(at=float(at), **dict(zip(fields, one, strict=True))) for at, one in enumerate(way)]
    trace = Journey(table="firmware", states=("idle", "uploading", "kept"), passages=tuple(passages))
    file = tmp_path / "trace.json"
    file.write_bytes(trace.to_json())
    told = run(file, "--table", "firmware:FIRMWARE")
    assert told.exit_code == 0, told.output
    assert "4 events replayed, none went another way" in told.output
    passages[2] = replace(passages[2], target="installed")
    file.write_bytes(replace(trace, passages=tuple(passages)).to_json())
    told = run(file, "--table", "firmware:FIRMWARE")
    assert told.exit_code == 1
    assert "recorded uploading → installed (moved), now → paused (moved)" in told.output
    told = run(file)
    assert (told.exit_code, "run of the table firmware; pass --table" in told.output) == (2, True)
    assert run(file, "--table", "firmware:NOTHING").exit_code == 2


def test_a_journey_with_wrong_names_is_told_or_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    file, svg = tmp_path / "run.json", tmp_path / "run.svg"
    passage = Passage(at=1.0, event="install", source="idle", target="uploading", verdict="moved")

    def trace(*passages: Passage) -> Result:
        file.write_bytes(Journey(table="firmware", states=(), passages=passages).to_json())
        return run(file, "--table", "firmware:FIRMWARE", "--svg", svg)

    assert trace().exit_code == 0
    assert trace(passage).exit_code == 0
    assert ">uploading</text>" in svg.read_text()
    assert trace(replace(passage, target="gone")).exit_code == 1
    assert ">gone</text>" in svg.read_text()
    hostile = trace(replace(passage, target="\x1b]0;owned\x07", verdict="\x07"))
    assert (hostile.exit_code, "\x07" in hostile.output) == (1, False)
    swapped = trace(replace(passage, source="install", event="idle"))
    assert (swapped.exit_code, "the table firmware has no idle, install" in swapped.output) == (2, True)


def test_what_is_no_history_is_told(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    for path in (tmp_path / "run.json", tmp_path / "nothing.json"):
        told = run(path)
        assert (told.exit_code, path.name in told.output) == (2, True)
