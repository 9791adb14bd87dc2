"""`towline rehearse`, as a process, on a job of a running hub."""

from __future__ import annotations

import json
import signal
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def start_job(run: Run, hub: str, tmp_path: Path, rows: int) -> str:
    books = tmp_path / "books.csv"
    books.write_text("title,author,isbn\n" + "Emma,Jane Austen,9780141439587\n" * rows)
    answer = run("import", str(books), "--url", hub, "--detach", "--json")
    return str(json.loads(answer.stdout)["job"])


def test_when_nobody_reads_it_the_report_is_written(
    run: Run, begin: Callable[..., subprocess.Popen[str]], hub: str, tmp_path: Path
) -> None:
    job = start_job(run, hub, tmp_path, 20)
    script, report = tmp_path / "storm.toml", tmp_path / "report.json"
    script.write_text("[[step]]\ndo = 'chop'\npiece = 100\n")
    url = hub.replace("http", "ws") + "/ws/progress"
    with begin("rehearse", url, "--job", job, "--script", str(script), "--report", str(report)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == "towline: [Errno 32] Broken pipe\n"
        assert process.wait(20) == 5
    assert json.loads(report.read_text())["outcome"] == "JobComplete"


def test_ctrl_c_breaks_it_off_and_the_report_is_written(
    run: Run, begin: Callable[..., subprocess.Popen[str]], hub: str, tmp_path: Path
) -> None:
    job = start_job(run, hub, tmp_path, 2000)
    script, report, svg = tmp_path / "storm.toml", tmp_path / "report.json", tmp_path / "storm.svg"
    script.write_text("")
    report.write_text("of an earlier run")
    url = hub.replace("http", "ws") + "/ws/progress"
    options = ["--job", job, "--script", str(script), "--report", str(report), "--svg", str(svg)]
    with begin("rehearse", url, *options, "--backend", "trio") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "connected" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert "no end after" in process.stdout.read()
        assert process.wait(20) == 130
    told = json.loads(report.read_text())
    assert (told["outcome"], told["findings"]) == (None, ["stopped before the end of the job"])
    assert "connected" in [entry["state"] for entry in told["entries"]]
    ElementTree.parse(svg)


@pytest.mark.parametrize("option", ["--report", "--svg"])
def test_a_file_that_cannot_be_written_is_told_of_before_the_storm(run: Run, tmp_path: Path, option: str) -> None:
    script, nowhere = tmp_path / "storm.toml", tmp_path / "nowhere" / "file"
    script.write_text("")
    answer = run(
        "rehearse", "ws://127.0.0.1:9/ws/progress", "--job", "j", "--script", str(script), option, str(nowhere)
    )
    assert (answer.returncode, answer.stdout) == (5, "")
    assert answer.stderr == f"towline: [Errno 2] No such file or directory: '{nowhere}'\n"


def test_messages_that_tls_hides_are_told_of_before_the_storm(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "storm.toml"
    script.write_text("[[step]]\ndo = 'message'\nfault = 'drop'\nnumber = 1\n")
    answer = run("rehearse", "wss://127.0.0.1:9/ws/progress", "--job", "j", "--script", str(script), TOWLINE_TOKEN="t")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "`message` needs a ws:// URL" in answer.stderr


def test_a_bad_script_is_said_in_a_line(run: Run, hub: str, tmp_path: Path) -> None:
    script = tmp_path / "storm.toml"
    script.write_text("[[step]]\ndo = 'rain'\n")
    answer = run("rehearse", "ws://127.0.0.1:9/ws/progress", "--job", "j", "--script", str(script))
    assert answer.returncode == 2
    assert "rain" in answer.stderr
    script.write_bytes(b"\xff\xfe")
    answer = run("rehearse", "ws://127.0.0.1:9/ws/progress", "--job", "j", "--script", str(script))
    assert (answer.returncode, "UTF-8" in answer.stderr) == (2, True)
