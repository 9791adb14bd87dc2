"""Places for the boxes, arrows and labels of a picture, by rule: the same input always gives the same picture.

The boxes stand in rows. Arrows run on a lattice, one after the other, each on the cheapest way that is left: bends and
crossings cost, and no two arrows share a piece of the way. Then each label takes a free place next to its own arrow,
which later arrows avoid. If an arrow finds no way or no place for its label, it goes first in the next try; if that
does not help either, the rows and columns move apart. So nothing overlaps, and no table needs coordinates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from itertools import pairwise
from math import ceil, inf
from typing import Final, NamedTuple, TypeAlias

#: Pixels between two lines of the lattice, and so between two lines of text.
UNIT: Final = 12
#: The widths of a character in pixels: of a label (monospace, 11 px) and, at most, of a box's name (bold, 13 px).
LABEL_WIDTH: Final = 6.7
NAME_WIDTH: Final = 8.4

_HIGH: Final = 4  # the height of a box; three arrows fit on each side
_MARGIN: Final = 9
_BEND, _CROSS, _ENTER, _NEAR = 5, 14, 4, 1
_HORIZONTAL, _VERTICAL, _SOLID, _BORDER = 1, 2, 4, 8
_STEPS: Final = ((1, 0), (0, 1), (-1, 0), (0, -1))
#: Labels may be one word a line, or wider.
_CHARACTERS: Final = (1, 26, 40)

Point: TypeAlias = tuple[int, int]


class Box(NamedTuple):
    """A rectangle: its left, upper, right and lower edge."""

    left: int
    top: int
    right: int
    bottom: int

    def points(self) -> Iterator[Point]:
        """The points of the lattice in it and on its edge."""
        return ((x, y) for x in range(self.left, self.right + 1) for y in range(self.top, self.bottom + 1))

    def ports(self) -> Iterator[tuple[Point, int, float]]:
        """The points where an arrow may leave, the direction out, and what the distance from the middle costs."""
        middle_x, middle_y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        for x in range(self.left + 1, self.right):
            yield (x, self.top), 3, abs(x - middle_x) / 2
            yield (x, self.bottom), 1, abs(x - middle_x) / 2
        for y in range(self.top + 1, self.bottom):
            yield (self.left, y), 2, abs(y - middle_y) / 2
            yield (self.right, y), 0, abs(y - middle_y) / 2


class Line(NamedTuple):
    """An arrow to draw: from a box to a box, and the words of its label."""

    source: str
    target: str
    words: tuple[str, ...]


class Label(NamedTuple):
    """The lines of a label, each a list of words; the place that it covers, and where and how its text is set."""

    lines: tuple[tuple[str, ...], ...]
    box: Box
    anchor: str
    x: float
    baseline: float


class Route(NamedTuple):
    """The way of an arrow, from bend to bend, and its label."""

    points: tuple[Point, ...]
    label: Label | None
    cost: float


class Plan(NamedTuple):
    """A picture: its size, its boxes, the groups around boxes, and a route for each line, in units of the lattice."""

    size: Point
    boxes: dict[str, Box]
    groups: dict[str, Box]
    routes: tuple[Route, ...]


@lru_cache(maxsize=32)
def lay_out(
    rows: tuple[tuple[str, ...], ...],
    groups: tuple[tuple[str, tuple[str, ...]], ...],
    lines: tuple[Line, ...],
    way: tuple[str, ...] = (),
) -> Plan:
    """Lay out a picture.

    `rows` names the boxes ("" leaves a place free), `groups` those with a frame around them. The lines between
    neighbours in `way` come first, so they are straight where they can be.
    """
    for growth in range(60):
        plan = _placed(rows, dict(groups), lines, growth)
        if (routes := _routed(plan, lines, set(pairwise(way)))) is not None:
            return _cropped(plan._replace(routes=routes))
    raise AssertionError("any picture fits when its boxes are far enough apart")


def _placed(
    rows: Sequence[Sequence[str]], groups: Mapping[str, Sequence[str]], lines: Sequence[Line], growth: int
) -> Plan:
    """The boxes in their rows and columns, with room for their arrows and for the labels between two columns."""
    places = {name: (column, row) for row, names in enumerate(rows) for column, name in enumerate(names) if name}
    columns = range(max(map(len, rows)))
    arrows = Counter(end for line in lines for end in (line.source, line.target))
    # An even width, so that the arrows along the way run from middle to middle; two ports for three arrows.
    wide = {name: 2 * ceil(max(len(name) * NAME_WIDTH / UNIT + 2, arrows[name] * 0.75) / 2) for name in places}
    widths = [max((wide[name] for name, (x, _) in places.items() if x == column), default=2) for column in columns]
    gaps, falls = [4 + growth for _ in columns], [4 + growth for _ in rows]
    for line in lines:
        ends = [[places[name][0] for name in groups.get(end, (end,))] for end in (line.source, line.target)]
        (_, left), (right, _) = sorted((min(end), max(end)) for end in ends)
        if line.words and right == left + 1:
            gaps[left] = max(gaps[left], 3 + growth + _label_width(line.words))
    frames = {}
    for name, members in groups.items():
        widest = max(wide[member] for member in members)
        inner = [line.words for line in lines if line.words and {line.source, line.target} <= {*members}]
        side = max([2, *(_label_width(words) + 1 - widest // 2 for words in inner)]) + growth // 2
        frames[name] = Box(side, 2, max(side, _label_width((name,)) + 1 - widest - side), 3)
        for steps, axis, before, after in ((gaps, 0, side, frames[name].right), (falls, 1, 2, 3)):
            spots = [places[member][axis] for member in members]
            steps[max(spots)] += after
            if min(spots):
                steps[min(spots) - 1] += before
    margin = max([_MARGIN, *(_label_width(line.words) for line in lines if line.words)]) + growth
    margin += max((frame.left for frame in frames.values()), default=0)
    boxes = {}
    for name, (column, row) in places.items():
        left = margin + sum(widths[:column]) + sum(gaps[:column]) + (widths[column] - wide[name]) // 2
        top = margin + row * _HIGH + sum(falls[:row])
        boxes[name] = Box(left, top, left + wide[name], top + _HIGH)
    around = {name: _frame([boxes[member] for member in members], frames[name]) for name, members in groups.items()}
    every = [*boxes.values(), *around.values()]
    size = max(box.right for box in every) + margin, max(box.bottom for box in every) + margin
    return Plan(size, boxes, around, ())


def _frame(boxes: Sequence[Box], away: Box) -> Box:
    """A frame around boxes, this far away on each side."""
    left, top = min(box.left for box in boxes), min(box.top for box in boxes)
    right, bottom = max(box.right for box in boxes), max(box.bottom for box in boxes)
    return Box(left - away.left, top - away.top, right + away.right, bottom + away.bottom)


def _label_width(words: Sequence[str]) -> int:
    return ceil((max(map(len, words)) + 1) * LABEL_WIDTH / UNIT)


# --- arrows ------------------------------------------------------------------------------------------------------


def _routed(plan: Plan, lines: Sequence[Line], steps: set[tuple[str, str]]) -> tuple[Route, ...] | None:
    """A route for each line, or None if the boxes stand too close. What fails goes first in the next try."""
    ends = {**plan.boxes, **plan.groups}

    def rank(place: int) -> tuple[bool, int]:
        line = lines[place]
        source, target = ends[line.source], ends[line.target]
        apart = abs(source.left - target.left) + abs(source.top - target.top)
        return (line.source, line.target) not in steps, apart

    order = sorted(range(len(lines)), key=rank)
    for _ in range(6):
        routes: dict[int, Route] = {}
        for place in order:
            if (route := _route(plan, lines[place], list(routes.values()))) is None:
                order.remove(place)
                order.insert(0, place)
                break
            routes[place] = route
        else:
            return _improved(plan, lines, routes)
    return None


def _improved(plan: Plan, lines: Sequence[Line], routes: dict[int, Route]) -> tuple[Route, ...]:
    """Route each line again, while the others stand, as long as that makes the picture better."""
    for _ in range(3):
        before = sum(route.cost for route in routes.values())
        for place in sorted(routes, key=lambda place: -routes[place].cost):
            others = [route for other, route in routes.items() if other != place]
            again = _route(plan, lines[place], others)
            if again is not None and again.cost < routes[place].cost:
                routes[place] = again
        if sum(route.cost for route in routes.values()) == before:
            break
    return tuple(routes[place] for place in range(len(lines)))


def _route(plan: Plan, line: Line, others: Collection[Route]) -> Route | None:
    """The cheapest way for a line among the others, with a place for its label; None if there is none."""
    marks = _marks(plan, others)
    found = _cheapest(plan, line, marks, {point for route in others for point in (route.points[0], route.points[-1])})
    if found is None:
        return None
    cost, way = found
    bends = [way[0], *(b for a, b, c in zip(way, way[1:], way[2:], strict=False) if a[0] != c[0] and a[1] != c[1])]
    bends.append(way[-1])
    if not line.words:
        return Route(tuple(bends), None, cost)
    marks.update(dict.fromkeys(way, _SOLID))
    place = min(_label_places(line.words, bends, marks, plan.size), default=None)
    return None if place is None else Route(tuple(bends), place[1], cost + place[0])


def _marks(plan: Plan, routes: Collection[Route]) -> dict[Point, int]:
    """What stands on each point of the lattice: boxes and labels, and frames and arrows, which may only be crossed."""
    marks: dict[Point, int] = {}
    for name, frame in plan.groups.items():
        for x in range(frame.left + 1, frame.right):
            marks[x, frame.top] = marks[x, frame.bottom] = _HORIZONTAL | _BORDER
        for y in range(frame.top + 1, frame.bottom):
            marks[frame.left, y] = marks[frame.right, y] = _VERTICAL | _BORDER
        for x in (frame.left, frame.right):
            marks[x, frame.top] = marks[x, frame.bottom] = _SOLID
        end = frame.left + _label_width((name,))  # the name stands in the lower left corner
        marks.update(dict.fromkeys(Box(frame.left + 1, frame.bottom - 2, end, frame.bottom - 1).points(), _SOLID))
    for route in routes:
        for (x, y), (to_x, to_y) in pairwise(route.points):
            look = _VERTICAL if x == to_x else _HORIZONTAL
            for point in Box(min(x, to_x), min(y, to_y), max(x, to_x), max(y, to_y)).points():
                marks[point] = marks.get(point, 0) | look
        marks.update(dict.fromkeys(route.points, _SOLID))
        (before_x, before_y), (x, y) = route.points[-2:]  # nothing crosses an arrow at its head
        marks[x - (x > before_x) + (x < before_x), y - (y > before_y) + (y < before_y)] = _SOLID
        if route.label is not None:
            marks.update(dict.fromkeys(route.label.box.points(), _SOLID))
    for box in plan.boxes.values():
        marks.update(dict.fromkeys(box.points(), _SOLID))
    return marks


def _cheapest(
    plan: Plan, line: Line, marks: Mapping[Point, int], taken: Collection[Point]
) -> tuple[float, list[Point]] | None:
    """The cheapest way between two boxes (A* over points and directions), and what it costs."""

    def ports(name: str) -> Iterator[tuple[Point, int, float]]:
        boxed = name in plan.boxes
        for port, out, cost in (plan.boxes if boxed else plan.groups)[name].ports():
            # The port of a frame is also taken by an arrow that crosses it.
            if port not in taken if boxed else marks[port] in (_HORIZONTAL | _BORDER, _VERTICAL | _BORDER):
                yield port, out, cost

    goals = {(port, (out + 2) % 4): cost for port, out, cost in ports(line.target)}
    target = plan.boxes[line.target]
    best: dict[tuple[Point, int], float] = {}
    came: dict[tuple[Point, int], tuple[Point, int]] = {}
    queue: list[tuple[float, float, Point, int]] = []
    for port, out, cost in ports(line.source):
        best[port, out] = cost
        heappush(queue, (cost, cost, port, out))
    while queue:
        _, cost, point, direction = heappop(queue)
        here = point, direction
        if cost > best[here]:
            continue
        if here in goals:
            way = [point]
            while here in came:
                here = came[here]
                way.append(here[0])
            return cost, way[::-1]
        # An arrow leaves its box straight, and crosses others straight.
        turns = (0, 1, 3) if here in came and point not in marks else (0,)
        for turn in turns:
            onward = (direction + turn) % 4
            step_x, step_y = _STEPS[onward]
            x, y = ahead = point[0] + step_x, point[1] + step_y
            if not (0 <= x <= plan.size[0] and 0 <= y <= plan.size[1]):
                continue
            look = marks.get(ahead, 0)
            total = cost + 1 + (_BEND if turn else 0)
            if (ahead, onward) in goals:
                if point in marks and here in came:
                    continue
                total += goals[ahead, onward]
            elif look & (_SOLID | (_HORIZONTAL if step_y == 0 else _VERTICAL)):
                continue
            elif look:
                total += _ENTER if look & _BORDER else _CROSS
            total += _NEAR * (((x + step_y, y + step_x) in marks) + ((x - step_y, y - step_x) in marks))
            if total < best.get((ahead, onward), inf):
                best[ahead, onward], came[ahead, onward] = total, here
                guess = max(target.left - x, 0, x - target.right) + max(target.top - y, 0, y - target.bottom)
                heappush(queue, (total + guess, total, ahead, onward))
    return None


# --- labels ------------------------------------------------------------------------------------------------------


def _label_places(
    words: tuple[str, ...], bends: Sequence[Point], marks: Mapping[Point, int], size: Point
) -> Iterator[tuple[float, Label]]:
    """The free places for a label next to its arrow, and what they cost: in the middle of a long piece is cheap."""
    for lines in dict.fromkeys(_wrapped(words, limit) for limit in _CHARACTERS):
        wide = _label_width([", ".join(line) for line in lines])
        high = len(lines)
        for (x, y), (to_x, to_y) in pairwise(bends):
            flat = y == to_y
            first, last = sorted((x, to_x) if flat else (y, to_y))
            room = last - first - (wide if flat else high)
            # A label that is longer than its flat piece has its middle or one of its ends there.
            spots = [(at, "middle") for at in range(first + min(0, room), first + max(0, room) + 1)]
            if flat and room < 0:
                spots = [(at, "middle") for at in range(first - wide // 2, last - (wide + 1) // 2 + 1)]
                spots += [(first, "start"), (last - wide, "end")]
            for at, anchor in spots:
                cost = abs(at - first - room / 2) / 4 + 3 * max(0, -room) + (high if flat else wide / 2)
                for other_side in (0, 1):
                    if flat:
                        label = _flat_label(lines, at, y, wide, anchor, other_side)
                    else:
                        label = _side_label(lines, x, at, wide, other_side)
                    if _is_free(label.box, marks, size):
                        yield cost + other_side - (last - first) / 4, label


def _flat_label(lines: tuple[tuple[str, ...], ...], x: int, y: int, wide: int, anchor: str, other_side: int) -> Label:
    """A label above a flat piece of an arrow, or on the other side, below it."""
    top = y + 1 if other_side else y - len(lines)
    at = {"start": x + 0.5, "middle": x + wide / 2, "end": x + wide - 0.5}[anchor]
    baseline = y * UNIT + 13 if other_side else top * UNIT + 6
    return Label(lines, Box(x, top, x + wide, top + len(lines) - 1), anchor, at * UNIT, baseline)


def _side_label(lines: tuple[tuple[str, ...], ...], x: int, y: int, wide: int, other_side: int) -> Label:
    """A label right of an upright piece of an arrow, or on the other side, left of it."""
    left = x - wide if other_side else x + 1
    box = Box(left, y, left + wide - 1, y + len(lines))
    at = x * UNIT + (-6 if other_side else 6)
    return Label(lines, box, "end" if other_side else "start", at, y * UNIT + 10)


def _is_free(box: Box, marks: Mapping[Point, int], size: Point) -> bool:
    inside = box.left >= 0 and box.top >= 0 and box.right <= size[0] and box.bottom <= size[1]
    return inside and not any(point in marks for point in box.points())


def _wrapped(words: tuple[str, ...], limit: int) -> tuple[tuple[str, ...], ...]:
    lines: list[tuple[str, ...]] = []
    for word in words:
        if lines and len(", ".join((*lines[-1], word))) <= limit:
            lines[-1] = (*lines[-1], word)
        else:
            lines.append((word,))
    return tuple(lines)


def _cropped(plan: Plan) -> Plan:
    """The plan without the empty margin."""
    labels = [route.label.box for route in plan.routes if route.label is not None]
    ways = [Box(*point, *point) for route in plan.routes for point in route.points]
    every = [*plan.boxes.values(), *plan.groups.values(), *labels, *ways]
    x, y = min(box.left for box in every) - 1, min(box.top for box in every) - 1
    size = max(box.right for box in every) + 1 - x, max(box.bottom for box in every) + 1 - y

    def moved(box: Box) -> Box:
        return Box(box.left - x, box.top - y, box.right - x, box.bottom - y)

    routes = tuple(
        Route(
            tuple((px - x, py - y) for px, py in route.points),
            label and label._replace(box=moved(label.box), x=label.x - x * UNIT, baseline=label.baseline - y * UNIT),
            route.cost,
        )
        for route in plan.routes
        for label in [route.label]
    )
    boxes = {name: moved(box) for name, box in plan.boxes.items()}
    return Plan(size, boxes, {name: moved(box) for name, box in plan.groups.items()}, routes)
