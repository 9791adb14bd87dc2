"""`towline rehearse`: a storm on a running hub, as a process; and a protocol checked against a recording."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from towline.cli._app import app
from towline.testing import virtual_time_backends

Run = Callable[..., subprocess.CompletedProcess[str]]


def start_job(run: Run, hub: str, tmp_path: Path, rows: int) -> str:
    books = tmp_path / "books.csv"
    books.write_text("title,author,isbn\n" + "Emma,Jane Austen,9780141439587\n" * rows)
    answer = run("import", str(books), "--url", hub, "--detach", "--json")
    return str(json.loads(answer.stdout)["job"])


def test_a_storm_is_survived_told_and_drawn(run: Run, hub: str, tmp_path: Path) -> None:
    job = start_job(run, hub, tmp_path, 20)
    script, report, svg = tmp_path / "storm.toml", tmp_path / "report.json", tmp_path / "storm.svg"
    script.write_text("seed = 3\n[[step]]\ndo = 'cut_after'\ncount = 1\n")
    url = hub.replace("http", "ws") + "/ws/progress"
    options = ["--job", job, "--script", str(script), "--report", str(report), "--svg", str(svg)]
    answer = run("rehearse", url, *options)
    assert answer.returncode == 0, answer.stderr
    assert "~ cut_after (count 1, " in answer.stdout
    assert "JobComplete after" in answer.stdout

    told = json.loads(report.read_text())
    assert (told["outcome"], told["findings"], told["seed"]) == ("JobComplete", [], 3)
    assert told["steps"] == ["cut_after (count 1, direction down, ending rst, times 1)"]
    states = [entry["state"] for entry in told["entries"] if entry["state"]]
    assert states[-1] == "idle"
    assert "reconnecting" in states
    picture = ElementTree.parse(svg).getroot()
    circles = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(told["entries"])
    assert "cut_after" in [text.text for text in picture.findall("{http://www.w3.org/2000/svg}text")]


# --- a protocol and a recording ------------------------------------------------------------------------------------

MODULE = """
from towline import JobComplete, Progress
from towline._facts import Ended
from towline.protocols import EventStream

URL = "http://127.0.0.1:8471/jobs/2/events"

def each(message):
    match message:
        case {"event": "progress", "percent": percent}:
            return Progress(fraction=percent / 100)
        case {"event": "done", "result": result}:
            return JobComplete(result=result)

good = EventStream(URL, each)

class Deaf(EventStream):
    def read(self, want, received):
        facts = super().read(want, received)
        return tuple(fact for fact in facts if not isinstance(fact, Ended))

def make(url: str) -> Deaf:
    return Deaf(url, each)
"""
RECORDED = Path(__file__).parents[1] / "testing" / "recorded"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's in the current folder."""
    (tmp_path / "shop_rehearsed.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "shop_rehearsed", raising=False)
    return tmp_path


@pytest.mark.parametrize("backend", virtual_time_backends())
def test_a_protocol_that_holds(module: Path, backend: str) -> None:
    options = ["--protocol", "shop_rehearsed:good", "--recording", str(RECORDED / "events.jsonl"), "--backend", backend]
    answer = CliRunner().invoke(app, ["rehearse", *options])
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout == "event_stream (what arrives): 5 lines, 43 runs, 0 findings\n"


def test_a_built_in_protocol_with_the_recorded_address(module: Path) -> None:
    options = ["--recording", str(RECORDED / "hub.jsonl"), "--job", "job-1", "ws://127.0.0.1:8472/ws/progress"]
    answer = CliRunner().invoke(app, ["rehearse", *options])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith("towline (exact): 12 lines, ")


def test_a_finding_is_told_and_reported(module: Path) -> None:
    options = ["--protocol", "shop_rehearsed:make", "--recording", str(RECORDED / "events.jsonl")]
    answer = CliRunner().invoke(app, ["rehearse", *options, "http://h/1", "--report", "report.json"])
    assert answer.exit_code == 1
    assert answer.stdout.splitlines() == [
        "event_stream (what arrives): 5 lines, 0 runs, 1 findings",
        "- Reading the recording: expected an end of the job (`Ended`), but `read` found none: record the job until it "
        "ends",
    ]
    told = json.loads((module / "report.json").read_text())
    assert [finding["expected"] for finding in told["findings"]] == ["an end of the job (`Ended`)"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "pass URL, --job and --script, or --protocol and --recording"),
        (["--protocol", "polling"], "pass URL, --job and --script, or --protocol and --recording"),
        (["--recording", "missing.jsonl", "--job", "j"], "towline needs a URL"),
        (["--recording", "storm.toml", "--protocol", "shop_rehearsed:good"], "line 1 is not a line of a recording"),
        (["--script", "storm.toml", "--job", "j", "ws://h/", "--protocol", "polling"], "a storm is for Towline's own"),
    ],
)
def test_options_that_do_not_fit(module: Path, given: list[str], words: str) -> None:
    (module / "storm.toml").write_text("seed = 1\n")
    answer = CliRunner().invoke(app, ["rehearse", *given])
    assert answer.exit_code == 2
    assert words in answer.stderr


def test_a_recording_that_is_missing(module: Path) -> None:
    given = ["--recording", "missing.jsonl", "--protocol", "shop_rehearsed:good"]
    answer = CliRunner().invoke(app, ["rehearse", *given])
    assert answer.exit_code == 5
    assert "missing.jsonl" in answer.stderr
