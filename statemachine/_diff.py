"""The differences between two versions of a machine, compared by cell instead of by line of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from ._description import BranchWords, CellWords, Description

_ACCEPTED: Final = frozenset({"moved", "kept"})


class Change(Struct, frozen=True, kw_only=True):
    """One change: its kind, place, and the text before and after. `breaking`: users of the old version may fail."""

    kind: str
    where: str
    before: str = ""
    after: str = ""
    breaking: bool = False


def diff(base: Description, head: Description) -> tuple[Change, ...]:
    """Every change from `base` to `head`, in the order of the table."""
    return tuple(_changes(base, head))


def _changes(base: Description, head: Description) -> Iterator[Change]:
    if base.initial != head.initial:
        yield Change(kind="initial state changed", where="", before=base.initial, after=head.initial, breaking=True)
    yield from _members("state", base.states, head.states, ("final", "enters", "owns", "waits", "doc"))
    yield from _members("event", base.events, head.events, ("timer", "doc"))
    final = {state.name for state in base.states if state.final}
    old = {(cell.event, cell.state): cell for cell in base.cells}
    new = {(cell.event, cell.state): cell for cell in head.cells}
    for key in [*old, *(key for key in new if key not in old)]:
        where = f"{key[0]} in {key[1]}"
        if key not in new:
            yield Change(kind="cell removed", where=where, before=_cell(old[key]), breaking=_accepts(old[key]))
        elif key not in old:
            yield Change(kind="cell added", where=where, after=_cell(new[key]))
        elif old[key] != new[key]:
            yield from _cell_changes(where, old[key], new[key], was_final=key[1] in final)
    yield from _members("guard", base.guards, head.guards, ("doc",))
    yield from _members("action", base.actions, head.actions, ("doc", "arms", "disarms"))
    yield from _members("timer", base.timers, head.timers, ("after", "expiry", "runs_in", "doc"))


def _members(what: str, base: tuple[Any, ...], head: tuple[Any, ...], fields: tuple[str, ...]) -> Iterator[Change]:
    old, new = {one.name: one for one in base}, {one.name: one for one in head}
    for name in old:
        if name not in new:
            yield Change(kind=f"{what} removed", where=name, breaking=what in ("state", "event", "timer"))
    for name, one in new.items():
        if name not in old:
            yield Change(kind=f"{what} added", where=name)
            continue
        for field in fields:
            before, after = getattr(old[name], field), getattr(one, field)
            if before != after:
                yield Change(kind=f"{what}: {field} changed", where=name, before=_plain(before), after=_plain(after))


def _cell_changes(where: str, old: CellWords, new: CellWords, *, was_final: bool) -> Iterator[Change]:
    kinds_before, kinds_after = ({branch.kind for branch in cell.branches} for cell in (old, new))
    before, after = _cell(old), _cell(new)
    said = False
    if was_final and "moved" in kinds_after - kinds_before:
        said = True
        yield Change(kind="a final state gained an exit", where=where, before=before, after=after, breaking=True)
    for kind in ("ignored", "forbidden"):
        if kind in kinds_after - kinds_before:
            said = True
            accepted = bool(kinds_before & _ACCEPTED)
            yield Change(kind=f"newly {kind}", where=where, before=before, after=after, breaking=accepted)
    if not kinds_before & _ACCEPTED and kinds_after & _ACCEPTED and not said:
        said = True
        yield Change(kind="newly accepted", where=where, before=before, after=after)
    if said:
        return
    if [branch.guard for branch in old.branches] != [branch.guard for branch in new.branches]:
        yield Change(kind="guards changed", where=where, before=before, after=after)
    # The guards of a cell differ, so they identify each branch in both versions.
    was = {branch.guard: branch for branch in old.branches}
    both = [(was[branch.guard], branch) for branch in new.branches if branch.guard in was]
    for kind, fields in (
        ("retargeted", ("kind", "target")),
        ("actions changed", ("actions",)),
        ("reason changed", ("reason", "error")),
    ):
        if any(getattr(one, field) != getattr(other, field) for one, other in both for field in fields):
            yield Change(kind=kind, where=where, before=before, after=after, breaking=kind == "retargeted")


def _accepts(cell: CellWords) -> bool:
    return any(branch.kind in _ACCEPTED for branch in cell.branches)


def _cell(cell: CellWords) -> str:
    return "; ".join(map(_words, cell.branches))


def _words(branch: BranchWords) -> str:
    sign = {"moved": f"→ {branch.target}", "kept": "=", "ignored": "–", "forbidden": f"✗ {branch.error}"}[branch.kind]
    words = f"[{branch.guard}] {sign}" if branch.guard else sign
    words += ": " + ", ".join(branch.actions) if branch.actions else ""
    return words + f" ({branch.reason})" if branch.reason else words


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value or "–")


def diff_markdown(base: Description, head: Description, changes: tuple[Change, ...]) -> str:
    """The changes as Markdown for a pull request."""
    title = f"# The machine `{head.name}`: {len(changes)} changes"
    lines = [title, "", f"`{base.hash[:12]}` → `{head.hash[:12]}`"]
    if changes:
        lines += ["", "| change | where | before | after |", "|---|---|---|---|"]
    for change in changes:
        kind = f"**{change.kind}** (breaking)" if change.breaking else change.kind
        row = (text.replace("|", "\\|") for text in (kind, change.where, change.before, change.after))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
