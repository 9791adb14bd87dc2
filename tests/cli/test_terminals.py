"""Terminals that can do less than most: they cannot move their cursor, or they are narrow."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len

from towline.cli.follow._view import bar_line
from towline.statemachine import State

Open = Callable[..., Any]
TITLE = "A rather long title of a book, which no narrow terminal can show"

on_a_terminal = pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is POSIX's")


@on_a_terminal
@pytest.mark.parametrize(
    "variables",
    [{"TERM": "dumb"}, {"TERM": "unknown"}, {"TERM": ""}, {"TTY_INTERACTIVE": "0"}, {"TTY_COMPATIBLE": "0"}],
    ids=lambda variables: " ".join(f"{name}={value}" for name, value in variables.items()),
)
def test_without_a_cursor_to_move_there_are_lines(
    job_server: Any, open_terminal: Open, variables: dict[str, str]
) -> None:
    terminal = open_terminal("watch", "j1", "--url", job_server.url, **variables)
    terminal.wait_for(r"\n *\d+\.\d%  \d+ done  working  Emma\n")
    job_server.finish()
    code, last_words = terminal.leave()
    assert (code, "complete" in last_words) == (0, True)
    assert "\x1b" not in terminal.raw


@on_a_terminal
@pytest.mark.parametrize("columns", [100, 50, 40, 20])
def test_the_share_is_seen_on_a_narrow_terminal(job_server: Any, open_terminal: Open, columns: int) -> None:
    job_server.item = TITLE
    terminal = open_terminal("watch", "j1", "--url", job_server.url, columns=columns)
    terminal.wait_for(r"\b[1-9]\d?% connected")
    job_server.finish()
    assert terminal.leave()[0] == 0


@pytest.mark.parametrize("item", [TITLE, "日本語" * 20, ""], ids=["long", "wide", "none"])
def test_every_width_has_room_for_the_share(item: str) -> None:
    for width in range(4, 130):
        for share in (0.0, 0.071, 1.0):
            line = bar_line(width, share, State.RECONNECTING, item).plain
            assert cell_len(line) <= width
            assert line.startswith(f"{share:4.0%}")
            assert ("reconnecting" in line) is (width >= 17)
            assert ("━" in line) is (width >= 57)


def test_the_item_comes_last_and_is_cut() -> None:
    assert bar_line(20, 0.5, State.CONNECTED, TITLE).plain == " 50% connected   "
    assert bar_line(40, 0.5, State.CONNECTED, TITLE).plain == " 50% connected    A rather long title o…"
    assert bar_line(60, 0.5, State.CONNECTED, "Emma").plain == " 50% connected    ━━━━━━━━━━━ Emma"
    assert bar_line(40, 0.5, State.CONNECTED, TITLE, "-").plain == " 50% connected    A rather long title of"
    assert re.fullmatch(r"100% connected +━{40} A rather .*", bar_line(200, 1.0, State.CONNECTED, TITLE).plain)
