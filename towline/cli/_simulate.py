"""`towline simulate`: the load that thousands of reconnecting clients put on a server, for several policies."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from enum import StrEnum
from html import escape
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from .._exceptions import InvalidArgument

_BARS: Final = " ▁▂▃▄▅▆▇█"
_COLOURS: Final = ("#1a7f37", "#0969da", "#8a5a00", "#cf222e", "#8250df", "#bf3989", "#57606a", "#116329")


class Scenario(StrEnum):
    """What the server does."""

    HERD = "herd"
    FLAP = "flap"


def simulate(
    scenario: Annotated[Scenario, typer.Argument(help="herd: drop all clients; flap: close each accept.")],
    clients: Annotated[int, typer.Option(help="Number of clients.")] = 10_000,
    outage: Annotated[float, typer.Option(help="herd: seconds until the server is back.")] = 10.0,
    accepts: Annotated[int, typer.Option(help="herd: connections that it then accepts per second.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 1,
    only: Annotated[str, typer.Option(help="Run only algorithms whose name contains this text.")] = "",
    svg: Annotated[Path | None, typer.Option(help="Draw connection attempts over time to this SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """`towline simulate`."""
    from ..testing import ALGORITHMS, CrowdResult, Scene, crowd

    flapping = scenario is Scenario.FLAP
    outcomes: list[CrowdResult] = []
    try:
        scene = Scene(outage=outage, accepts=accepts, flapping=flapping, horizon=300.0 if flapping else 1800.0)
        for algorithm in ALGORITHMS:
            # A server sends a spread when it restarts. One that flaps sends none.
            if only not in algorithm.name or (flapping and algorithm.spread is not None):
                continue
            started = time.perf_counter()
            outcomes.append(crowd(algorithm, scene, clients=clients, seed=seed))
            if not as_json:
                _show(outcomes[-1], flapping, time.perf_counter() - started, first=len(outcomes) == 1)
    except InvalidArgument as error:
        typer.echo(f"towline: {error}", err=True)
        raise typer.Exit(2) from error
    if not outcomes:
        typer.echo(
            f"towline: no algorithm has {only!r} in its name: {', '.join(one.name for one in ALGORITHMS)}", err=True
        )
        raise typer.Exit(2)
    if as_json:
        typer.echo(json.dumps([_plain(outcome) for outcome in outcomes], indent=2))
    if svg is not None:
        svg.write_text(plot(outcomes), encoding="utf-8", newline="\n")


def _show(outcome: Any, flapping: bool, seconds: float, *, first: bool) -> None:
    if flapping:
        if first:
            typer.echo(f"{'':<24}{'dials a minute, p99':>20}")
        typer.echo(f"{outcome.algorithm:<24}{outcome.dials_a_minute:>20}")
        return
    if first:
        typer.echo(
            f"{'':<24}{'busiest s':>10}{'all back':>10}{'gave up':>9}{'at cap':>8}{'took':>8}  dials, second 0 to 59"
        )
    back = "never" if outcome.back_by is None else f"{outcome.back_by:.0f} s"
    cap = "–" if outcome.at_cap is None else f"{outcome.at_cap:.0%}"
    typer.echo(
        f"{outcome.algorithm:<24}{outcome.busiest:>10.1%}{back:>10}{outcome.gave_up / outcome.clients:>9.0%}{cap:>8}"
        f"{seconds:>7.1f}s  {sparkline([outcome.dials.get(second, 0) for second in range(60)])}"
    )


def sparkline(numbers: Sequence[float]) -> str:
    """Draw numbers as a line of bars; the largest fills its cell."""
    most = max(numbers, default=0) or 1
    # A number above zero is always visible.
    return "".join(_BARS[0 if not number else max(1, round(number / most * (len(_BARS) - 1)))] for number in numbers)


def _plain(outcome: Any) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__dataclass_fields__}


def plot(outcomes: Sequence[Any]) -> str:
    """Draw connection attempts per second as SVG: one panel for each algorithm, all with the same scales."""
    last = max((second for outcome in outcomes for second in outcome.dials), default=1)
    seconds = min(last, 180) + 1
    most = max((count for outcome in outcomes for count in outcome.dials.values()), default=1)
    width, panel, left = 900, 90, 170
    height = panel * len(outcomes) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        "<title>Dials a second</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    step = (width - left - 20) / seconds
    for place, outcome in enumerate(outcomes):
        base, colour = panel * (place + 1), _COLOURS[place % len(_COLOURS)]
        out.append(f'<text x="10" y="{base - 8}" fill="{colour}">{escape(outcome.algorithm)}</text>')
        out.append(f'<text x="10" y="{base - 24}" fill="#666666">busiest {outcome.busiest:.1%}</text>')
        out.append(f'<line x1="{left}" y1="{base}" x2="{width - 20}" y2="{base}" stroke="#cccccc"/>')
        for second, count in outcome.dials.items():
            if second < seconds:
                tall = count / most * (panel - 16)
                out.append(
                    f'<rect x="{left + second * step:.1f}" y="{base - tall:.1f}" width="{max(step - 0.5, 0.5):.1f}" '
                    f'height="{tall:.1f}" fill="{colour}"><title>second {second}: {count} dials</title></rect>'
                )
    out += [
        f'<text x="{left + second * step:.1f}" y="{height - 16}" fill="#666666">{second} s</text>'
        for second in range(0, seconds, max(1, seconds // 6))
    ]
    return "\n".join([*out, "</svg>"]) + "\n"
