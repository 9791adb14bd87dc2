"""`towline rehearse`, as a process: a storm on a running hub."""

from __future__ import annotations

import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

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
    assert len(circles) == len(states)
    assert "cut_after" in [text.text for text in picture.findall("{http://www.w3.org/2000/svg}text")]
