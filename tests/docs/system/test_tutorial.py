"""Chapter 2 and 3 of docs/tutorial, with what takes a minute: stops, a kill, a hub that stays away, a cancel."""

from __future__ import annotations

import re
import sys

import pytest
from tutorial import Desk, Reader, blocks

from towline.server import read_events

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(sys.platform == "win32", reason="kills with a signal, and stops the hub with one"),
]
PROGRESS = r" *(\d+)% .*"


def percent(line: str) -> int | None:
    found = re.fullmatch(PROGRESS, line)
    return None if found is None else int(found[1])


def words_about(reader: Reader) -> list[str]:
    """What a reader saw, without the progress and without the attempts that failed, however many there were."""
    lines = [line for line in reader.lines if percent(line) is None and "Connection refused" not in line]
    return [line for line, before in zip(lines, ["", *lines], strict=False) if line != before]


def check_progress(reader: Reader, reported: list[str]) -> None:
    """The items that were shown are those that the job reported, in order and each once; some may be joined."""
    shown = [line.partition("% ")[2] for line in reader.lines if percent(line) is not None]
    rest = iter([item[:60] for item in reported])
    assert all(item in rest for item in shown), shown


def test_chapter_2(desk: Desk) -> None:
    program, serve, follow, begun, after_stop, kill, again, given_up, *_ = blocks("2-survive.md")
    announced = blocks("1-follow.md")[3].text
    job = "towline-sample"
    assert serve.text == "towline serve --sample --row-delay 1\n"
    faster = ("--row-delay", "0.1")
    assert follow.text == again.text == f"python follow.py {job}-3\n"
    command = follow.text.replace("-3", "")
    desk.save(program)

    hub = desk.serve("towline serve --sample", announced, *faster)
    following = desk.type(command)
    following.wait_for(PROGRESS, lambda found: int(found[1]) >= 5)
    begins = [line for line in begun.text.splitlines() if percent(line) is None]
    assert following.lines[: len(begins)] == begins

    desk.stop(hub)
    following.wait_for(r"\[reconnecting: could not connect .*")
    hub = desk.serve("towline serve --sample", announced, *faster)
    following.wait_for(r"\[connected\]")
    following.wait_for(PROGRESS, lambda found: int(found[1]) >= 35)
    shown = [line for line in after_stop.text.replace("8470", str(desk.port)).splitlines() if percent(line) is None]
    advice = re.compile(r"'\{.*\}'")
    seen = [advice.sub("", line) for line in following.lines if percent(line) is None]
    assert all(advice.sub("", line) in seen for line in shown), seen
    assert words_about(following)[3:] == [shown[0], "[connecting]", "[syncing]", "[connected]"]

    assert kill.text == f"pkill -KILL -f 'follow.py {job}'\n"
    following.process.kill()
    assert following.finish() == -9
    last = max(filter(None, map(percent, following.lines)))
    killed, following = following, desk.type(again.text.replace("-3", ""))
    first = following.wait_for(PROGRESS)
    assert 5 < int(first[1]) <= last + 20

    desk.stop(hub)
    assert following.finish() == 4
    ending = given_up.text.replace("8470", str(desk.port)).splitlines()
    assert following.lines[-len(ending) :] == ending
    given_up_on = following
    hub = desk.serve("towline serve --sample", announced, *faster)
    last_run = desk.type(again.text.replace("-3", ""))
    assert last_run.finish() == 0
    assert last_run.lines[-2:] == ["[idle]", "complete"]
    assert last_run.lines.count("complete") == 1
    desk.stop(hub)

    events = read_events(desk.folder / "towline-hub.db", job)
    items = [event.payload["currentItem"] for event in events if event.type == "job_progress"]
    assert len(items) == 318
    for reader in (killed, given_up_on, last_run):
        check_progress(reader, items)


def test_chapter_3(desk: Desk) -> None:
    jobs, serve, announced, words, start, _, cancel, printed, *_ = blocks("3-own-job.md")
    desk.save(blocks("2-survive.md")[0])
    desk.save(jobs, **{"sleep(1)": "sleep(0.5)"})
    desk.save(words)
    zen, count = start.text.splitlines()
    desk.make_zen(zen)
    hub = desk.serve(serve.text, announced.text)
    counting = desk.type(count)
    counting.wait_for(PROGRESS, lambda found: int(found[1]) >= 20)
    desk.stop(hub)
    hub = desk.serve(serve.text, announced.text)
    assert counting.finish() == 0
    check_progress(counting, (desk.folder / "zen.txt").read_text().splitlines())
    assert counting.lines[-1] == "complete"

    counting = desk.type(count)
    job = counting.wait_for("job ([0-9a-f]{32})")[1]
    counting.wait_for(PROGRESS)
    assert desk.run(re.sub("[0-9a-f]{32}", job, cancel.text)) == printed.text
    assert counting.finish() == 1
    assert counting.lines.count("cancelled") == 1
    assert counting.lines[-1] == "cancelled"
    desk.stop(hub)
