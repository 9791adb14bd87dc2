"""Documents of a description: the matrix of all cells, and a section for each event with a Mermaid picture.

This module knows no particular lifecycle: it shows only the description that it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from ._description import BranchWords, CellWords, Description, EventWords, StateWords, TimerWords

#: A branch of a cell, for coverage: event, state, place of the branch in the cell.
Place = tuple[str, str, int]


_LEGEND: Final = (
    "The branches of a cell are tried in order; each applies only if no earlier one did.",
    "`→` leads to a state, `=` handles the event in the state, `–` ignores and counts it (the footnote says why),",
    "`✗` raises a typed error and changes nothing. The guard is in brackets, the actions are after the colon.",
    "",
)


def markdown(description: Description, *, covered: Collection[Place] | None = None) -> str:
    """The matrix of events and states, with its reasons, guards, actions and timers.

    `covered` are the branches that a run took: the rest is marked with `✘`, and their share is given.
    """
    return "\n".join(_markdown(description, covered)) + "\n"


def _markdown(description: Description, covered: Collection[Place] | None) -> Iterator[str]:
    reasons: dict[str, int] = {}
    guards = {guard.name: place for place, guard in enumerate(description.guards, 1)}
    yield f"# The machine `{description.name}`"
    yield ""
    yield "Generated from the table; do not edit."
    yield ""
    yield f"Hash `{description.hash}`."
    yield f"{len(description.states)} states, {len(description.events)} events, {len(description.cells)} cells,"
    yield f"{len(description.timers)} timers. 0 problems: a table with a problem cannot be created."
    if covered is not None:
        everything = [(cell.event, cell.state, n) for cell in description.cells for n in range(len(cell.branches))]
        hit = sum(place in covered for place in everything)
        yield f"Covered: {hit} of {len(everything)} branches ({hit / len(everything):.1%}); `✘` marks the rest."
    yield ""
    yield from _LEGEND
    yield "| event | " + " | ".join(_text(state.name) for state in description.states) + " |"
    yield "|---" * (len(description.states) + 1) + "|"
    for event in description.events:
        cells = []
        for state in description.states:
            cell = description.cell(event.name, state.name)
            assert cell is not None, "a table has every cell"
            cells.append(_cell(cell, guards, reasons, covered))
        yield f"| **{_text(event.name)}** | " + " | ".join(cells) + " |"
    yield ""
    for name, place in guards.items():
        doc = next(guard.doc for guard in description.guards if guard.name == name)
        yield f"[^g{place}]: `{name}`: {_text(doc)}"
    for reason, place in reasons.items():
        yield f"[^r{place}]: {_text(reason)}"
    yield ""
    yield "## States"
    yield ""
    yield "| state | means | on entry | owns | waits |"
    yield "|---|---|---|---|---|"
    for words in description.states:
        lists = (", ".join(names) or "–" for names in (words.enters, words.owns))
        row = (f"**{_text(words.name)}**", _text(words.doc), *map(_text, lists), _waits(description, words))
        yield f"| {' | '.join(row)} |"
    yield ""
    yield "When the machine leaves a state, it first releases the resources that the next state does not own and stops"
    yield "the timers that may not run there."
    yield ""
    yield "## Actions"
    yield ""
    yield "| action | does | may arm | may disarm |"
    yield "|---|---|---|---|"
    for action in description.actions:
        yield f"| {action.name} | {_text(action.doc)} | {', '.join(action.arms)} | {', '.join(action.disarms)} |"
    if description.timers:
        yield ""
        yield "## Timers"
        yield ""
        yield "| timer | means | after | runs in | armed by | disarmed by | expiry |"
        yield "|---|---|---|---|---|---|---|"
        for timer in description.timers:
            yield _timer(description, timer)


def _cell(cell: CellWords, guards: dict[str, int], reasons: dict[str, int], covered: Collection[Place] | None) -> str:
    lines = []
    for place, branch in enumerate(cell.branches):
        line = {
            "moved": f"→ **{_text(branch.target or '')}**",
            "kept": "=",
            "ignored": "–",
            "forbidden": f"✗ {branch.error}",
        }[branch.kind]
        if branch.guard is not None:
            line = f"[{branch.guard}][^g{guards[branch.guard]}] {line}"
        if branch.actions:
            line += ": " + ", ".join(branch.actions)
        if branch.reason:
            line += f"[^r{reasons.setdefault(branch.reason, len(reasons) + 1)}]"
        if covered is not None and (cell.event, cell.state, place) not in covered:
            line += " ✘"
        lines.append(line)
    return "<br>".join(lines)


def _waits(description: Description, state: StateWords) -> str:
    timers = [timer.name for timer in description.timers if state.name in timer.runs_in]
    return "; ".join(filter(None, ["timers: " + ", ".join(timers) if timers else "", _text(state.waits)])) or "–"


def _timer(description: Description, timer: TimerWords) -> str:
    arms = {action.name for action in description.actions if timer.name in action.arms}
    disarms = {action.name for action in description.actions if timer.name in action.disarms}
    armed = {
        f"{action} ({', '.join(where)})": None
        for action in sorted(arms)
        if (
            where := [
                *dict.fromkeys(cell.event for cell in description.cells if _uses(cell, action)),
                *(f"entering {state.name}" for state in description.states if action in state.enters),
            ]
        )
    }
    runs = ", ".join(timer.runs_in)
    by = "; ".join([*sorted(disarms), "leaving these states"])
    row = (f"**{timer.name}**", timer.doc, timer.after, runs, "; ".join(armed), by, timer.expiry)
    return f"| {' | '.join(map(_text, row))} |"


def _uses(cell: CellWords, action: str) -> bool:
    return any(action in branch.actions for branch in cell.branches)


def _text(text: str) -> str:
    """Escape text so that it cannot end a cell or act as markup."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
    return " ".join(escaped.split())


# --- events ------------------------------------------------------------------------------------------------------


def events_markdown(description: Description) -> str:
    """A section for each event: its states, guards, targets and actions, and a Mermaid picture if it moves the machine.

    States that respond in the same way are shown as one.
    """
    docs = {guard.name: guard.doc for guard in description.guards}
    docs |= {action.name: action.doc for action in description.actions}
    enters = {state.name: state.enters for state in description.states}
    lines = [f"# The events of `{description.name}`", "", "Generated from the table; do not edit.", ""]
    lines += ["The branches of a cell are tried in order; each applies only if no earlier one did.", ""]
    lines.append(", ".join(f"[{_text(event.name)}](#{_anchor(event.name)})" for event in description.events))
    for event in description.events:
        alike: dict[tuple[BranchWords, ...], list[str]] = {}
        for cell in description.cells:
            if cell.event == event.name:
                alike.setdefault(cell.branches, []).append(cell.state)
        lines += ["", f"## {_text(event.name)}", "", _text(event.doc)]
        if timer := _timer_of(description, event):
            lines[-1] += f" The timer `{timer.name}` raises it after {_text(timer.after)}."
        lines += ["", *_event_picture(alike), "| in | if | then | does |", "|---|---|---|---|"]
        for branches, states in sorted(alike.items(), key=lambda item: item[0][-1].kind == "ignored"):
            for place, branch in enumerate(branches, 1):
                number = f"{place}. " if len(branches) > 1 else ""
                does = [*branch.actions, *enters.get(branch.target or "", ())]
                row = (
                    ", ".join(map(_text, states)) if place == 1 else "",
                    number + (_named(branch.guard, docs) if branch.guard else "else" if number else "always"),
                    _then(branch),
                    "<br>".join(_named(action, docs) for action in does) or "–",
                )
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _event_picture(alike: dict[tuple[BranchWords, ...], list[str]]) -> Iterator[str]:
    """A Mermaid flowchart in the small subset that forges render.

    States that respond alike are one box, from which guards lead to targets. The guards are boxes too, because Mermaid
    lets the labels of arrows overlap; and no box has two parents, so that no arrow runs behind a box.
    """
    moved = {branches: states for branches, states in alike.items() if any(branch.target for branch in branches)}
    if not moved:
        return
    yield from ("```mermaid", "flowchart LR")
    for source, (branches, states) in enumerate(moved.items()):
        yield f'    s{source}["{"<br>".join(map(_label, states))}"]'
        guards: dict[str, list[str]] = {}
        for place, branch in enumerate(branches, 1):
            if branch.target is not None:
                guards.setdefault(branch.target, []).append(f"{place} {_label(branch.guard or 'else')}")
        for number, (target, names) in enumerate(guards.items()):
            guard = f' --> g{source}_{number}{{{{"{"<br>".join(names)}"}}}}' if len(branches) > 1 else ""
            yield f'    s{source}{guard} --> t{source}_{number}(["{_label(target)}"])'
    yield from ("```", "")


def _named(name: str, docs: dict[str, str]) -> str:
    return f"`{name}`: {_text(docs[name])}" if docs.get(name) else f"`{name}`"


def _then(branch: BranchWords) -> str:
    words = {
        "moved": f"→ **{_text(branch.target or '')}**",
        "kept": "stay",
        "ignored": "ignore",
        "forbidden": f"raise `{branch.error}`",
    }[branch.kind]
    return f"{words}: {_text(branch.reason)}" if branch.reason else words


def _anchor(title: str) -> str:
    """The anchor that code hosts give a heading."""
    return "".join(char for char in title.lower().replace(" ", "-") if char.isalnum() or char in "-_")


def _timer_of(description: Description, event: EventWords) -> TimerWords | None:
    return next((timer for timer in description.timers if timer.name == event.timer), None)


#: Characters with a meaning in a Mermaid label, and the entities that replace them.
_MERMAID: Final = {char: f"#{ord(char)};" for char in '#;:<>"{}[]|\\`'}


def _label(text: str) -> str:
    return "".join(_MERMAID.get(char, char) for char in " ".join(text.split()))
