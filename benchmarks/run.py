"""`make bench`: compare Towline with its peers, as ratios.

Each figure is the median over several rounds. In a round the clients take turns, each in a fresh process bound to one
core; the server has the other core. A single absolute time says little on a shared machine, so read the ratios.
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
    """One workload. `unit` is the measure to compare; `targets` are the ratios to reach, by peer."""

    name: str
    work: str
    path: str
    count: int
    contestants: tuple[str, ...]
    targets: dict[str, float]
    unit: str = "cpu"  # or "wall"
    tls: bool = False
    most: bool = False  # if true, the targets are upper bounds of our time divided by theirs


BULK = (
    "towline",
    "towline-uvloop",
    "towline-trio",
    "websockets",
    "websockets-trio",
    "aiohttp",
    "picows",
    "trio-websocket",
)

MAIN = ("towline", "towline-trio", "websockets", "aiohttp", "picows")
SENDERS = ("towline", "towline-trio", "websockets", "aiohttp")

ROWS = (
    Row(
        "bulk receive, 200 B text, asyncio",
        "receive",
        "/bulk/200/{n}",
        200_000,
        BULK,
        {"websockets": 8.5, "aiohttp": 2, "picows": 0.9},
    ),
    Row(
        "bulk receive, 200 B text, trio",
        "receive",
        "/bulk/200/{n}",
        200_000,
        ("towline-trio", "websockets-trio", "trio-websocket"),
        {"websockets-trio": 7, "trio-websocket": 20},
    ),
    Row(
        "one message per round trip, 200 B",
        "echo",
        "/echo/200",
        20_000,
        MAIN,
        {"websockets": 1.7},
    ),
    Row("round trip over TLS, 200 B", "echo", "/echo/200", 10_000, MAIN, {"websockets": 1.5}, tls=True),
    Row("bulk receive over TLS, 200 B", "receive", "/bulk/200/{n}", 200_000, MAIN, {"websockets": 7}, tls=True),
    Row("messages of 64 KiB over TLS", "receive", "/bulk/65536/{n}", 4_000, MAIN, {}, tls=True),
    Row("messages of 1 MiB over TLS", "receive", "/bulk/1048576/{n}", 400, MAIN, {}, tls=True),
    Row("send, 200 B", "send", "/sink/200/{n}", 50_000, SENDERS, {"websockets": 1, "aiohttp": 1}),
    Row("send, 200 B, 50 in a batch", "send-batch", "/sink/200/{n}", 50_000, SENDERS, {"websockets": 1, "aiohttp": 1}),
    Row("send, 64 KiB", "send", "/sink/65536/{n}", 1_000, SENDERS, {"websockets": 1, "aiohttp": 1}),
    Row(
        "drop to the next first message over TLS",
        "drops",
        "/drop/fin",
        300,
        SENDERS,
        {"websockets": 1, "aiohttp": 1},
        "wall",
        most=True,
        tls=True,
    ),
    Row(
        "messages of 64 KiB",
        "receive",
        "/bulk/65536/{n}",
        4_000,
        MAIN,
        {"websockets": 4},
    ),
    Row(
        "messages of 1 MiB",
        "receive",
        "/bulk/1048576/{n}",
        400,
        MAIN,
        {"websockets": 2.5},
    ),
    Row(
        "bulk receive, 200 B, compressed",
        "receive",
        "/deflate/200/{n}",
        100_000,
        ("towline", "towline-trio", "websockets", "aiohttp"),
        {"websockets": 3},
    ),
    Row(
        "drop (RST) to the next first message",
        "drops",
        "/drop/rst",
        500,
        ("towline", "towline-trio", "blocking", "aiohttp", "websockets", "httpx-ws"),
        {"blocking": 2.0},
        "wall",
        True,
    ),
    Row(
        "drop (FIN) to the next first message",
        "drops",
        "/drop/fin",
        500,
        ("towline", "towline-trio", "blocking", "aiohttp", "websockets", "httpx-ws"),
        {"blocking": 2.0},
        "wall",
        True,
    ),
    Row(
        "through Connection, typed and in sequence",
        "follow",
        "/job/{n}",
        50_000,
        ("towline", "towline-trio", "websockets"),
        {"websockets": 2},
    ),
    *(
        Row(
            f"event stream, 200 B JSON, {shape}",
            "parse",
            f"/events/200/{chunk}",
            100_000,
            ("towline", "httpx-sse"),
            {"httpx-sse": target},
        )
        for shape, chunk, target in (("chunks of 64 KiB", 65_536, 4), ("an event a chunk", 0, 2), ("1,400 B", 1_400, 2))
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


def print_row(row: Row, taken: dict[str, list[float]]) -> None:
    """Print the medians, and the ratios of each round with the first contestant: median, lowest and highest."""
    ours = row.contestants[0]
    print(f"\n{row.name} ({row.unit}, per message or cycle)")
    for name, values in taken.items():
        if not values:
            continue
        line = f"  {name:16} {statistics.median(values) * 1e6:10.2f} µs"
        # Pairs of one round, so that both saw the same load of the machine.
        pairs = list(zip(taken[ours], values, strict=False))
        if name != ours and pairs:
            ratios = [first / value if row.most else value / first for first, value in pairs]
            ratio = statistics.median(ratios)
            line += f"   {ours} is {ratio:5.2f} × {'its time' if row.most else 'as fast'}"
            line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            if name in row.targets:
                target = row.targets[name]
                met = ratio <= target if row.most else ratio >= target
                line += f"   target {'≤' if row.most else '≥'} {target}: {'met' if met else 'MISSED'}"
        print(line)


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
    parser.add_argument("--quick", action="store_true", help="2 rounds with a tenth of the messages, no idle row")
    options = parser.parse_args()
    rows = ROWS
    if options.quick:
        options.rounds, options.idle = 2, 0
        rows = tuple(replace(row, count=row.count // 10) for row in ROWS)
    print(", ".join(f"{peer} {version(peer)}" for peer in ("websockets", "aiohttp", "picows", "trio-websocket")))
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
            sys.stdout.flush()
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
