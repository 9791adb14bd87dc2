"""`make bench`: compare Towline with its peers, as ratios. It prints the table of docs/performance.md.

Each figure is the median over several rounds, with the lowest and highest. In a round the clients take turns, each in a
fresh process bound to one core; the server has the other core. A single absolute time says little on a shared machine,
so read the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """One workload. `unit` is the measure to compare.

    `goals` are, for each of ours, how many times as fast as a peer it must be. `tried` is the heading of
    docs/performance.md under which stands what was tried for a goal that is missed.
    """

    name: str
    work: str
    path: str
    count: int
    contestants: tuple[str, ...]
    goals: dict[str, dict[str, float]]
    unit: str = "cpu"  # or "wall"
    tls: bool = False
    quick: bool = True
    tried: str = ""


MAIN = ("towline", "towline-trio", "websockets", "aiohttp", "picows")
SENDERS = ("towline", "towline-trio", "websockets", "aiohttp")
DROPS = ("towline", "towline-trio", "websockets", "aiohttp", "blocking", "httpx-ws")

BOTH = {"websockets": 1.0, "aiohttp": 1.0}


def over_websockets(asyncio: float, trio: float | None = None) -> dict[str, dict[str, float]]:
    goals = {"towline": {"websockets": asyncio}}
    return goals if trio is None else {**goals, "towline-trio": {"websockets": trio}}


ROWS = (
    Row(
        "200 B in bulk, TCP",
        "receive",
        "/bulk/200/{n}",
        200_000,
        MAIN,
        over_websockets(8.5, 8),
        tried="small-messages-in-bulk",
    ),
    Row(
        "200 B in bulk, TCP, other libraries",
        "receive",
        "/bulk/200/{n}",
        200_000,
        ("towline", "towline-uvloop", "towline-trio", "websockets-trio", "trio-websocket"),
        {"towline-trio": {"websockets-trio": 7, "trio-websocket": 20}},
        quick=False,
    ),
    Row("200 B in bulk, TLS", "receive", "/bulk/200/{n}", 200_000, MAIN, over_websockets(7), tls=True, tried="tls"),
    Row(
        "200 B in bulk, compressed",
        "receive",
        "/deflate/200/{n}",
        100_000,
        SENDERS,
        over_websockets(3),
        quick=False,
    ),
    Row("round trip of 200 B, TCP", "echo", "/echo/200", 20_000, MAIN, over_websockets(1.7), tried="round-trips"),
    Row(
        "round trip of 200 B, TLS",
        "echo",
        "/echo/200",
        10_000,
        MAIN,
        over_websockets(1.5, 1.1),
        tls=True,
        tried="round-trips",
    ),
    Row(
        "messages of 64 KiB, TCP",
        "receive",
        "/bulk/65536/{n}",
        4_000,
        MAIN,
        over_websockets(4, 3),
        tried="messages-of-64-kib",
    ),
    Row("messages of 64 KiB, TLS", "receive", "/bulk/65536/{n}", 4_000, MAIN, {}, tls=True),
    Row(
        "messages of 1 MiB, TCP",
        "receive",
        "/bulk/1048576/{n}",
        400,
        MAIN,
        over_websockets(2.5, 2.5),
        tried="messages-of-1-mib",
    ),
    Row("messages of 1 MiB, TLS", "receive", "/bulk/1048576/{n}", 400, MAIN, {}, tls=True, quick=False),
    Row(
        "sending 200 B, TCP",
        "send",
        "/sink/200/{n}",
        50_000,
        SENDERS,
        {"towline": BOTH},
        tried="sending-small-messages",
    ),
    Row("sending 200 B, 50 in a `send_batch`", "send-batch", "/sink/200/{n}", 50_000, SENDERS, {"towline": BOTH}),
    Row(
        "sending 64 KiB, with `towline[speed]`",
        "send",
        "/sink/65536/{n}",
        4_000,
        SENDERS,
        {"towline": BOTH},
        tried="sending-large-messages",
    ),
    Row(
        "updates through `Connection`",
        "follow",
        "/job/{n}",
        50_000,
        ("towline", "towline-trio", "websockets"),
        over_websockets(3),
        tried="updates-through-connection",
    ),
    Row(
        "drop to the next first message, TLS, real time",
        "drops",
        "/drop/fin",
        300,
        SENDERS,
        {"towline": BOTH},
        "wall",
        tls=True,
        tried="reconnecting",
    ),
    *(
        Row(
            f"drop ({how.upper()}) to the next first message, TCP, real time",
            "drops",
            f"/drop/{how}",
            500,
            DROPS,
            {"towline": {"blocking": 0.5}},
            "wall",
            quick=False,
            tried="reconnecting",
        )
        for how in ("rst", "fin")
    ),
    *(
        Row(
            f"event stream of 200 B, {shape}",
            "parse",
            f"/events/200/{chunk}",
            100_000,
            ("towline", "httpx-sse"),
            {"towline": {"httpx-sse": 4}},
            quick=chunk > 1_400,
            tried="event-streams",
        )
        for shape, chunk in (("chunks of 64 KiB", 65_536), ("an event a chunk", 0), ("1,400 B", 1_400))
    ),
)


def pinned(core: int) -> list[str]:
    return ["taskset", "-c", str(core)] if Path("/usr/bin/taskset").exists() else []


def measure(contestant: str, row: Row, port: str) -> dict[str, float] | None:
    path = row.path.format(n=row.count)
    if row.work == "follow" and not contestant.startswith("towline"):
        path += "/plain"
    url = f"{'wss' if row.tls else 'ws'}://127.0.0.1:{port}{path}"
    command = [*pinned(os.cpu_count() - 1 if os.cpu_count() else 0), sys.executable, str(HERE / "clients.py")]
    count = row.count // 10 if contestant == "httpx-ws" else row.count
    arguments = [*command, contestant, row.work, url, str(count)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=90)
    except subprocess.TimeoutExpired:
        print(f"  {contestant}: did not finish within 90 s", file=sys.stderr)
        return None
    if done.returncode or not done.stdout:
        print(f"  {contestant}: {done.stderr.strip().splitlines()[-1:] or 'no result'}", file=sys.stderr)
        return None
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {key: value / count if key in {"cpu", "wall"} else value for key, value in result.items()}


COLUMNS = ("websockets", "aiohttp", "picows")


def ratios(taken: dict[str, list[float]], ours: str, peer: str) -> list[float]:
    """How many times as fast `ours` was as `peer`, in order of size; pairs of one round saw the same load."""
    return sorted(theirs / own for own, theirs in zip(taken[ours], taken.get(peer, ()), strict=False))


def cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def verdict(row: Row, taken: dict[str, list[float]], ours: str) -> str:
    """The goals, and by how much each is missed."""
    parts = []
    for peer, goal in row.goals.get(ours, {}).items():
        if values := ratios(taken, ours, peer):
            reached = statistics.median(values) / goal
            tried = f", [tried](#{row.tried})" if row.tried else ""
            result = "met" if reached >= 1 else f"missed, {reached:.0%} of it{tried}"
            parts.append(f"{goal:g} {peer}: {result}")
    return "; ".join(parts)


def print_row(row: Row, taken: dict[str, list[float]]) -> None:
    """Print a line of the table for each of ours."""
    for ours in row.contestants:
        if not ours.startswith("towline") or not taken[ours]:
            continue
        backend = ours.partition("-")[2] or "asyncio"
        spent = f"{statistics.median(taken[ours]) * 1e6:.4g} µs"
        main = [cell(ratios(taken, ours, peer)) for peer in COLUMNS]
        others = [peer for peer in row.contestants if not peer.startswith("towline") and peer not in COLUMNS]
        other = ", ".join(f"{peer} {cell(values)}" for peer in others if (values := ratios(taken, ours, peer)))
        print("|", " | ".join((row.name, backend, spent, *main, other, verdict(row, taken, ours))), "|", flush=True)


def idle(
    port: str, count: int, *, work: str, what: str, contestants: dict[str, float | None], most_cpu: float | None = None
) -> None:
    """Print memory and CPU of `count` idle connections.

    `contestants` maps each client to its limit in KiB, if any; `most_cpu` is the limit in per cent of a core per 1,000.
    """
    print(f"\n{count} idle {what} with heartbeats")
    for contestant, most in contestants.items():
        result = measure(contestant, Row("idle", work, "/idle", count, (), {}), port)
        if result is None:
            continue
        kib = result["bytes"] / 1024
        share = result["cpu"] / result["wall"] * 100 / (count / 1000)
        line = f"  {contestant:16} {kib:6.1f} KiB each, {share:5.2f} % of a core per 1,000"
        if most is not None:
            met = kib <= most and (most_cpu is None or share <= most_cpu)
            target = f"≤ {most:g} KiB" + ("" if most_cpu is None else f", ≤ {most_cpu} %")
            line += f"   target {target}: {'met' if met else 'MISSED'}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="run only rows whose name contains this text")
    parser.add_argument("--idle", type=int, default=5000, help="number of idle connections; 0 skips that row")
    parser.add_argument("--quick", action="store_true", help="2 rounds, a tenth of the messages, fewer rows")
    options = parser.parse_args()
    rows = ROWS
    if options.quick:
        options.rounds, options.idle = 2, 0
        rows = tuple(replace(row, count=row.count // 10) for row in ROWS if row.quick)
    print(", ".join(f"{peer} {version(peer)}" for peer in ("websockets", "aiohttp", "picows", "trio-websocket")))
    print(
        "\n| Work | Backend | CPU | to",
        " | to ".join(COLUMNS),
        "| to others | Goal |\n|---|---|---|---|---|---|---|---|",
    )
    server = subprocess.Popen(
        [*pinned(0), sys.executable, str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdin is not None
    port, tls_port, authority = server.stdout.readline().split()
    os.environ["SSL_CERT_FILE"] = authority
    try:
        for row in rows:
            if options.only not in row.name:
                continue
            taken: dict[str, list[float]] = {name: [] for name in row.contestants}
            for _ in range(options.rounds):
                for name in row.contestants:
                    result = measure(name, row, tls_port if row.tls else port)
                    if result is not None:
                        taken[name].append(result[row.unit])
            print_row(row, taken)
        if options.idle and options.only in "idle":
            sockets = {"towline": 14.0, "towline-trio": 12.0, "websockets": None}
            idle(port, options.idle, work="idle", what="connections", contestants=sockets, most_cpu=0.8)
            lines = {"towline": 40.0, "towline-trio": 40.0}
            idle(port, options.idle // 5, work="idle-connections", what="`Connection`s", contestants=lines)
    finally:
        server.stdin.close()
        server.wait(10)


if __name__ == "__main__":
    main()
