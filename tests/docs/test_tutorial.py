"""The programs of docs/tutorial, as a reader writes and runs them; tests/docs/system has what takes a minute."""

from __future__ import annotations

import re

import pytest
from tutorial import TUTORIAL, Desk, blocks

import towline
from towline.server import read_events

SAMPLE = ("--row-delay", "0.01")
# Several programs start in each test, which takes long on a busy machine.
pytestmark = pytest.mark.timeout(240)


def test_every_block_is_a_program_a_command_or_an_output() -> None:
    """The tests take all blocks of a page apart by their order, so that none is left out; this is the order."""
    kinds = {
        page.name: " ".join(block.file or block.kind for block in blocks(page.name)) for page in TUTORIAL.iterdir()
    }
    assert kinds == {
        "1-follow.md": "sh sh sh text follow.py sh text follow.py sh text",
        "2-survive.md": "follow.py sh sh text text sh sh text rejected.py sh text",
        "3-own-job.md": "jobs.py sh text words.py sh text sh text test_follow.py sh",
    }
    for page in TUTORIAL.iterdir():
        text = page.read_text(encoding="utf-8")
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        assert len([line for line in prose.splitlines() if line]) <= 120


def test_chapter_1(desk: Desk) -> None:
    _, _, serve, announced, program, run, printed, *_ = blocks("1-follow.md")
    hub = desk.serve(serve.text, announced.text, *SAMPLE)
    desk.save(program)
    # On a slow machine a replay's first lines are printed before the change of state, and some updates are joined.
    lines = [re.sub("^syncing ", "connected ", line) for line in desk.run(run.text).splitlines()]
    desk.stop(hub)
    shown, last = printed.text.split("...\n")
    assert lines[0] == shown.splitlines()[0]
    assert lines[-1] == last.rstrip()
    progress = [*shown.splitlines()[1:], *lines[1:-1]]
    assert all(re.fullmatch(r"connected Progress \d+", line) for line in progress), progress
    numbers = [int(line.split()[-1]) for line in lines]
    assert numbers == sorted(set(numbers))
    assert desk.run(run.text) == last, "the end is in the store, so that no hub is needed"


def test_chapter_1_s_second_program(desk: Desk) -> None:
    serve, announced, *_, program, run, printed = blocks("1-follow.md")[2:]
    hub = desk.serve(serve.text, announced.text, *SAMPLE)
    desk.save(program)
    lines = desk.run(run.text.replace("-2", "")).splitlines()
    desk.stop(hub)
    shown = printed.text.splitlines()
    events = read_events(desk.folder / "towline-hub.db", "towline-sample")
    reported = [event.payload for event in events if event.type == "job_progress"]
    as_shown = [f"{each['progress']:.0%} {towline.escape(each['currentItem'])}" for each in reported]
    assert shown == [shown[0], *as_shown[:2], "...", as_shown[-1], shown[-1]]
    assert (lines[0], lines[-1]) == (shown[0], shown[-1])
    rest = iter(as_shown)
    assert all(line in rest for line in lines[1:-1]), "each at most once and in order; a slow reader gets some joined"
    assert len(lines) > 20


def test_chapter_2_s_wrong_token(desk: Desk) -> None:
    *_, rejected, run, printed = blocks("2-survive.md")
    serve, announced = blocks("1-follow.md")[2:4]
    hub = desk.serve(serve.text, announced.text)
    desk.save(rejected, **{"towline-sample-3": "towline-sample"})
    assert desk.run(run.text) == printed.text
    desk.stop(hub)


def test_chapter_3_s_job(desk: Desk) -> None:
    jobs, serve, announced, words, start, printed, *_ = blocks("3-own-job.md")
    desk.save(blocks("2-survive.md")[0])
    desk.save(jobs, **{"sleep(1)": "sleep(0.01)"})
    desk.save(words)
    hub = desk.serve(serve.text, announced.text)
    zen, count = start.text.splitlines()
    desk.make_zen(zen)
    output = desk.run(count)
    job, *rest = printed.text.splitlines()
    lines = [line for line in output.splitlines() if line and "%" not in line]
    assert re.fullmatch("job [0-9a-f]{32}", lines[0])
    assert re.fullmatch("job [0-9a-f]{32}", job)
    assert lines[1:] == rest
    assert "100% Namespaces are one honking great idea" in output
    assert desk.run(f"python follow.py {lines[0].split()[1]}").split() == ["complete"], "the end is in the store"
    (desk.folder / "zen.txt").write_text("")
    assert desk.run(count, code=1).splitlines()[-1] == "failed: EMPTY: the text has no lines"
    desk.stop(hub)
    assert "ConnectFailed" in desk.run(count, code=1)


def test_chapter_3_s_tests(desk: Desk) -> None:
    test, run = blocks("3-own-job.md")[-2:]
    desk.save(blocks("2-survive.md")[0])
    desk.save(test)
    pytest_line = run.text.splitlines()[-1]
    assert pytest_line == "pytest test_follow.py"
    output = desk.run(f"python -m {pytest_line} -q -p no:cacheprovider -W error")
    passed = int(re.findall(r"^(\d+) passed", output, re.M)[0])
    assert passed in (2, 4)
    assert f"`{passed} passed`" in (TUTORIAL / "3-own-job.md").read_text(encoding="utf-8")
