"""`towline import` and `towline watch`, as processes, against a running hub."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., subprocess.Popen[str]]
HEADER = "title,author,isbn\n"
GOOD_ROW = "Emma,Jane Austen,9780141439587\n"
# Bytes in the pipe of a child: it waits when it is this far ahead of the test, however slow the test is. Only Linux
# has a choice.
SHORT_PIPE = 4096


@pytest.fixture
def books(tmp_path: Path) -> Path:
    file = tmp_path / "books.csv"
    file.write_text(HEADER + GOOD_ROW * 5 + "Persuasion,Jane Austen,9780141439580\n")
    return file


def lines_of(answer: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_an_import_is_followed_to_its_end(run: Run, hub: str, books: Path) -> None:
    answer = run("import", str(books), "--url", hub, "--json")
    assert answer.returncode == 0
    lines = lines_of(answer)
    states = [line["state"] for line in lines if line["type"] == "state"]
    # A job as short as this may end before the client is in step.
    assert states[:2] == ["connecting", "syncing"]
    assert states[-1] == "idle"
    end = [line for line in lines if line["type"] == "job_complete"]
    assert len(end) == 1
    result = end[0]["result"]
    assert isinstance(result, dict)
    assert result["successRate"] == "5/6"
    assert "check digit" in result["errors"][0]["error"]


def test_ctrl_c_stops_following_and_the_job_is_resumed(run: Run, begin: Begin, hub: str, tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(HEADER + GOOD_ROW * 300)
    seen: list[int] = []
    with begin("import", str(file), "--url", hub, "--json", pipesize=SHORT_PIPE) as process:
        assert process.stdout is not None
        job = json.loads(process.stdout.readline())["job"]
        for line in process.stdout:
            told = json.loads(line)
            if told["type"] == "interruption":
                said, command = told["text"].splitlines()
            if told.get("seq"):
                seen.append(told["seq"])
            if len(seen) == 5:
                process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        # Nobody is at a terminal: there is no word of a second Ctrl-C, and no wait for it.
        assert said == "stopped following; the job continues. Resume with"
        assert command.split()[:3] == ["towline", "watch", job]
    resumed = run("watch", job, "--json")
    seen += [int(str(line["seq"])) for line in lines_of(resumed) if line.get("seq")]
    assert seen == list(range(1, 303))


@pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal")
def test_a_killed_process_is_resumed_by_the_job_id_alone(
    run: Run, begin: Begin, hub: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    """After kill -9 the record has the token and a position at most 5 s old: what it does not cover comes again."""
    file = tmp_path / "long.csv"
    file.write_text(HEADER + GOOD_ROW * 600)
    seen: list[int] = []
    with begin("import", str(file), "--url", hub, "--json", pipesize=SHORT_PIPE) as process:
        assert process.stdout is not None
        job = json.loads(process.stdout.readline())["job"]
        for line in process.stdout:
            told = json.loads(line)
            if told.get("seq"):
                seen.append(told["seq"])
            if len(seen) >= 5 and list(Path(environment["TOWLINE_STORE"]).glob("*.tok")):
                process.kill()
                break
        assert process.wait(120) == -signal.SIGKILL
    resumed = run("watch", job, "--json")
    assert resumed.returncode == 0
    again = [int(str(line["seq"])) for line in lines_of(resumed) if line.get("seq")]
    assert again == list(range(again[0], 603))
    assert again[0] <= seen[-1] + 1


def test_a_wrong_token_is_told_and_not_hammered(run: Run, hub: str, books: Path) -> None:
    job = str(lines_of(run("import", str(books), "--url", hub, "--detach", "--json"))[0]["job"])
    url = hub.replace("http", "ws") + "/ws/progress"
    answer = run("watch", job, "--url", url, TOWLINE_TOKEN="not-the-token")
    assert answer.returncode == 4
    assert "gave up (auth)" in answer.stderr
    assert "not-the-token" not in answer.stdout + answer.stderr


def test_a_missing_token_says_how_to_give_one(run: Run) -> None:
    answer = run("watch", "j1", "--url", "ws://127.0.0.1:9/ws/progress")
    assert answer.returncode == 4
    assert "no token for job 'j1'" in answer.stderr
    assert "TOWLINE_TOKEN or --token-file" in answer.stderr
