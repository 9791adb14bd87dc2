"""A description as an SVG chart that needs no layout program: states on the diagonal, events between them.

The cell in the row of one state and the column of another lists the events that lead from the first to the second.
Every pair of states has its own cell, so no lines cross and no labels overlap.
"""

from __future__ import annotations

from html import escape
from typing import Final

from ._description import Description
from ._pictures import pairs

_LINE: Final = 13  # height of a line of text
_PAD: Final = 16
_COLOURS: Final = {"state": "#234a75", "final": "#57606a", "events": "#f3f6fa", "text": "#24292f"}


def chart(description: Description) -> str:
    """Draw the chart of a table as SVG."""
    states = description.states
    between = pairs(description)
    heights = [
        _PAD + _LINE * max(len(between.get((row.name, column.name), "1")) for column in states) for row in states
    ]
    names = [8 * len(state.name) for state in states] + [
        7 * len(name) for events in between.values() for name in events
    ]
    pitch = 18 + max(names)
    width, top = pitch * len(states) + 2, 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + sum(heights) + 2}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="11" text-anchor="middle">',
        f"<title>The states of {escape(description.name)} and the events between them</title>",
        "<desc>Made from the table; do not edit.</desc>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="1" y="18" text-anchor="start" fill="{_COLOURS["text"]}">Read along a row: these events lead from '
        f"the state in dark to the state of the column. Initial state: {escape(description.initial)}.</text>",
    ]
    y = top
    for place, (state, height) in enumerate(zip(states, heights, strict=True)):
        for column, target in enumerate(states):
            x = 1 + pitch * column
            if column == place:
                look = _COLOURS["final" if state.final else "state"]
                out.append(_box(x, y, pitch, height, look))
                out.append(
                    _text(
                        x + pitch // 2,
                        y + height / 2 + 4,
                        state.name,
                        'fill="#ffffff" font-weight="bold" font-size="13"',
                    )
                )
            elif events := between.get((state.name, target.name)):
                out.append(_box(x, y, pitch, height, _COLOURS["events"]))
                first = y + (height - _LINE * len(events)) / 2 + 10
                out += [
                    _text(x + pitch // 2, first + _LINE * line, event, f'fill="{_COLOURS["text"]}"')
                    for line, event in enumerate(events)
                ]
        y += height
    return "\n".join([*out, "</svg>"]) + "\n"


def _box(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x + 2}" y="{y + 2}" width="{width - 4}" height="{height - 4}" rx="4" fill="{fill}"/>'


def _text(x: int, y: float, text: str, look: str) -> str:
    return f'<text x="{x}" y="{y:g}" {look}>{escape(text)}</text>'
