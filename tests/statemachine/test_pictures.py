"""Documents and pictures say what the table says, and nothing more."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from towline._exceptions import InvalidArgument
from towline.statemachine import (
    LIFECYCLE,
    Branch,
    Description,
    Kind,
    Table,
    describe,
    events_markdown,
    forbid,
    go,
    ignore,
    layers,
    markdown,
    overview,
    stay,
)

LIFE = describe(LIFECYCLE)
DOCS = Path(__file__).parents[2] / "docs" / "machine"


class Odd(Enum):
    """Names that every format would take for something else."""

    ONE = 'a;b:c<d>#e"f\\g|h[i]'
    TWO = "end"
    THREE = "final"


class Ring(Enum):
    BELL = "ring; the: <bell> #1"


def odd_guard(scratch: Any) -> bool:
    """A | pipe, a <tag> and a [link]."""
    return True


ODD: Table[Odd, Ring, Any, Any] = Table(
    name="odd one",
    states=Odd,
    events=Ring,
    initial=Odd.ONE,
    final=frozenset({Odd.THREE}),
    cells={
        Ring.BELL: {
            Odd.ONE: (go(Odd.TWO, when=odd_guard), forbid("a | reason\nin two lines")),
            Odd.TWO: (go(Odd.THREE),),
            Odd.THREE: ignore("over"),
        }
    },
    waits={Odd.ONE: "waits for | a bell", Odd.TWO: "the same"},
)
WORDS = describe(ODD)


# --- JSON --------------------------------------------------------------------------------------------------------


def test_json_is_canonical_and_comes_back() -> None:
    for description in (LIFE, WORDS):
        text = description.to_json()
        assert Description.from_json(text) == description
        assert describe(LIFECYCLE if description is LIFE else ODD).to_json() == text
        tree = msgspec.json.decode(text)
        assert list(tree) == sorted(tree)
        assert text.endswith(b"}\n")


def test_the_hash_names_the_machine() -> None:
    other = replace(LIFE, initial="connecting")
    assert re.fullmatch(r"[0-9a-f]{64}", LIFE.hash)
    with pytest.raises(InvalidArgument, match="hash"):
        Description.from_json(other.to_json())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1}', "\x00", "[" * 100_000])
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Description.from_json(text)


def test_another_version_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="version 2"):
        Description.from_json(replace(LIFE, version=2).to_json())


# --- Markdown ----------------------------------------------------------------------------------------------------


def rows(text: str) -> list[list[str]]:
    """The cells of every table row."""
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]


def test_the_matrix_has_every_cell() -> None:
    matrix = rows(markdown(LIFE))[: len(LIFE.events) + 2]
    assert [cell.strip() for cell in matrix[0]] == ["event", *(state.name for state in LIFE.states)]
    for event, row in zip(LIFE.events, matrix[2:], strict=True):
        assert row[0].strip() == f"**{event.name}**"
        for state, text in zip(LIFE.states, row[1:], strict=True):
            cell = LIFE.cell(event.name, state.name)
            assert cell is not None
            shown = text.strip().split("<br>")
            assert len(shown) == len(cell.branches)
            for branch, words in zip(cell.branches, shown, strict=True):
                assert (f"→ **{branch.target}**" in words) is (branch.kind == "moved")
                assert ("–" in words) is (branch.kind == "ignored")
                assert (f"✗ {branch.error}" in words) is (branch.kind == "forbidden")
                assert (f"[{branch.guard}]" in words) is (branch.guard is not None)
                assert all(action in words for action in branch.actions)


def test_every_footnote_is_there_and_used() -> None:
    text = markdown(LIFE)
    defined = set(re.findall(r"^\[\^(\w+)\]:", text, re.M))
    used = set(re.findall(r"\[\^(\w+)\](?!:)", text))
    assert defined == used
    for guard in LIFE.guards:
        assert f"`{guard.name}`: {guard.doc}" in text
    for branch in (branch for cell in LIFE.cells for branch in cell.branches if branch.reason):
        assert f": {branch.reason}\n" in text


def test_timers_states_and_the_hash_are_told() -> None:
    text = markdown(LIFE)
    assert LIFE.hash in text
    assert "0 problems" in text
    for timer in LIFE.timers:
        (row,) = (row for row in rows(text) if row[0].strip() == f"**{timer.name}**" and len(row) == 7)
        assert timer.after in row[2]
        assert row[6].strip() == timer.expiry
        assert row[4].strip()


def test_odd_names_break_no_table() -> None:
    text = markdown(WORDS)
    assert {len(row) for row in rows(text)} <= {2, 4, 5}
    assert "A \\| pipe, a &lt;tag> and a \\[link]." in text
    assert "a \\| reason in two lines" in text


def test_coverage_is_shown() -> None:
    assert "✘" not in markdown(WORDS)
    places = {(cell.event, cell.state, n) for cell in WORDS.cells for n, _ in enumerate(cell.branches)}
    assert "Covered: 4 of 4 branches (100.0%)" in markdown(WORDS, covered=places)
    partly = markdown(WORDS, covered=places - {("ring; the: <bell> #1", "end", 0)})
    assert "Covered: 3 of 4 branches (75.0%)" in partly
    assert partly.count("✘") == 2


# --- events ------------------------------------------------------------------------------------------------------


def sections(description: Description) -> dict[str, str]:
    """The text of each event's section."""
    _, *parts = re.split(r"^## ", events_markdown(description), flags=re.M)
    return dict(zip((event.name for event in description.events), parts, strict=True))


def test_each_event_has_a_section_with_every_branch_of_its_cells() -> None:
    for event, text in sections(LIFE).items():
        states: list[str] = []
        branches: list[tuple[list[str], list[str]]] = []
        for row in rows(text)[2:]:
            if row[0].strip():
                states = [name.strip() for name in row[0].split(",")]
            branches.append((states, row))
        for state in LIFE.states:
            cell = LIFE.cell(event, state.name)
            assert cell is not None
            mine = [row for states, row in branches if state.name in states]
            for branch, (_, guard, then, does) in zip(cell.branches, mine, strict=True):
                assert (f"`{branch.guard}`" in guard) is (branch.guard is not None)
                assert (f"→ **{branch.target}**" in then) is (branch.kind == "moved")
                assert ("ignore" in then.split(":")[0]) is (branch.kind == "ignored")
                assert (f"raise `{branch.error}`" in then) is (branch.kind == "forbidden")
                assert branch.reason in then
                assert all(f"`{action}`" in does for action in branch.actions)
                enters = next((state.enters for state in LIFE.states if state.name == branch.target), ())
                assert all(f"`{action}`" in does for action in enters)


def test_the_index_leads_to_every_section() -> None:
    for description in (LIFE, WORDS):
        text = events_markdown(description)
        assert len(re.findall(r"\]\(#[\w-]+\)", text)) == len(description.events)
    assert "[job_ended](#job_ended)" in events_markdown(LIFE)
    assert "The timer `grace` raises it after 30 s, 0 s on phones." in events_markdown(LIFE)


NODE = r'\w+(\["LABEL"\]|\{\{"LABEL"\}\}|\(\["LABEL"\]\))'.replace("LABEL", r"([^;:<>\"{}\[\]|\\`]|#\d+;|<br>)+")
LINE = re.compile(rf"    ({NODE}|s\d+( --> {NODE}){{1,2}})")


@pytest.mark.parametrize("description", [LIFE, WORDS], ids=lambda description: description.name)
def test_mermaid_keeps_to_its_subset_and_is_there_if_the_event_moves_the_machine(description: Description) -> None:
    for event, text in sections(description).items():
        drawn = re.findall(r"```mermaid\nflowchart LR\n(.*?)\n```\n", text, re.S)
        assert len(drawn) == any(cell.event == event for cell, _ in description.edges())
        for line in "\n".join(drawn).splitlines():
            assert LINE.fullmatch(line), line


def test_the_committed_files_are_what_the_table_says() -> None:
    for name, text in {
        "connection.json": LIFE.to_json().decode(),
        "connection.md": markdown(LIFE),
        "connection.events.md": events_markdown(LIFE),
        "connection.overview.svg": overview(LIFE),
        "connection.normal-way.svg": layers(LIFE)["normal way"],
        "connection.loss-and-retry.svg": layers(LIFE)["loss and retry"],
        "connection.host.svg": layers(LIFE)["host"],
        "connection.requests-and-ends.svg": layers(LIFE)["requests and ends"],
    }.items():
        message = f"docs/machine/{name} is stale: run `towline diagram --out docs/machine`"
        assert (DOCS / name).read_text(encoding="utf-8") == text, message


def test_a_picture_says_kept_and_forbidden_too() -> None:
    kinds = {branch.kind for cell in LIFE.cells for branch in cell.branches}
    assert kinds == {kind.value for kind in Kind}
    assert isinstance(stay(), Branch)
