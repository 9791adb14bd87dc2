"""Documents and pictures of a description: a Markdown matrix, Mermaid, DOT.

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
    yield "## Events"
    yield ""
    yield "| event | means |"
    yield "|---|---|"
    for event in description.events:
        yield f"| **{_text(event.name)}** | {_text(event.doc)} |"
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


# --- Mermaid -----------------------------------------------------------------------------------------------------


def mermaid(description: Description, *, overview: bool = False) -> str:
    """A Mermaid `stateDiagram-v2`: one transition per line, in table order, in the small subset that forges render.

    `overview` draws one line for each pair of states, with the names of the events, and omits transitions from a state
    to itself.
    """
    ids = {state.name: f"s{place}" for place, state in enumerate(description.states)}
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{_label(name)}" as {short}' for name, short in ids.items()]
    lines.append(f"    [*] --> {ids[description.initial]}")
    if overview:
        for (source, target), events in pairs(description).items():
            lines.append(f"    {ids[source]} --> {ids[target]} : {_label(', '.join(events))}")
    else:
        for cell, branch in description.edges():
            assert branch.target is not None, "edges() yields only branches with a target"
            lines.append(
                f"    {ids[cell.state]} --> {ids[branch.target]} : {_label(edge_label(description, cell, branch))}"
            )
    lines += [f"    {ids[state.name]} --> [*]" for state in description.states if state.final]
    return "\n".join(lines) + "\n"


def pairs(description: Description) -> dict[tuple[str, str], list[str]]:
    """The names of the events that lead from one state to another, by the two states."""
    found: dict[tuple[str, str], list[str]] = {}
    for cell, branch in description.edges():
        if branch.target is not None and branch.target != cell.state:
            events = found.setdefault((cell.state, branch.target), [])
            if cell.event not in events:
                events.append(cell.event)
    return found


def edge_label(description: Description, cell: CellWords, branch: BranchWords) -> str:
    """The label of a transition: the event (for a timer also its time) and the guard."""
    event = next(event for event in description.events if event.name == cell.event)
    label = event.name
    if timer := _timer_of(description, event):
        label += f" after {timer.after}" if timer.after else f" by {timer.name}"
    # "else": a last branch without a guard applies if no earlier one did.
    guard = branch.guard or ("else" if len(cell.branches) > 1 else None)
    return f"{label} [{guard}]" if guard else label


def _timer_of(description: Description, event: EventWords) -> TimerWords | None:
    return next((timer for timer in description.timers if timer.name == event.timer), None)


#: Characters with a meaning in a Mermaid label, and the entities that replace them.
_MERMAID: Final = {char: f"#{ord(char)};" for char in '#;:<>"{}\\`'}


def _label(text: str) -> str:
    return "".join(_MERMAID.get(char, char) for char in " ".join(text.split()))


# --- DOT ---------------------------------------------------------------------------------------------------------

_FILL: Final = {"initial": "#e7f0fd", "final": "#eeeeee", "other": "#ffffff"}


def dot(description: Description) -> str:
    """A Graphviz graph: one edge per transition, dashed for a timer, with the docstrings as tooltips."""
    lines = [
        f"digraph {_quoted(description.name)} {{",
        *DOT_STYLE,
        *(dot_state(description, state) for state in description.states),
    ]
    for cell, branch in description.edges():
        event = next(event for event in description.events if event.name == cell.event)
        look = 'color="#8a5a00", fontcolor="#8a5a00", style=dashed' if event.timer else 'color="#234a75"'
        lines.append("    " + dot_edge(description, cell, branch, look))
    return "\n".join([*lines, "}"]) + "\n"


DOT_STYLE: Final = (
    '    graph [rankdir=LR, fontname="Helvetica", nodesep=0.3, ranksep=1.2]',
    '    node [shape=box, style="rounded,filled", fontname="Helvetica", color="#444444"]',
    '    edge [fontname="Helvetica", fontsize=9]',
)


def dot_state(description: Description, state: StateWords, look: str = "") -> str:
    """The DOT line of a state."""
    kind = "initial" if state.name == description.initial else "final" if state.final else "other"
    shape = ", peripheries=2" if state.final else ""
    look = look or f'fillcolor="{_FILL[kind]}"'
    return f"    {_quoted(state.name)} [{look}{shape}, tooltip={_quoted(state.doc or state.name)}]"


def dot_edge(description: Description, cell: CellWords, branch: BranchWords, look: str) -> str:
    """The DOT line of a transition."""
    guard = next((guard.doc for guard in description.guards if guard.name == branch.guard), "")
    docs = [action.doc for action in description.actions if action.name in branch.actions]
    tooltip = " ".join(filter(None, [f"If: {guard}" if guard else "", *docs, branch.reason])) or cell.event
    return (
        f"{_quoted(cell.state)} -> {_quoted(branch.target or cell.state)} "
        f"[label={_quoted(edge_label(description, cell, branch))}, {look}, tooltip={_quoted(tooltip)}]"
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{" ".join(escaped.split())}"'
