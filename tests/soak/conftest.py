"""What the soaks share: the table that `make soak` prints at its end, and real hubs to follow.

Each test says what is promised, by the marker `promises(invariant, what, promised)`, and tells by the fixture `reached`
how far it came. The table has a row for every promise, also of a test that failed or had to be skipped; what holds is
what the test's own assertions say. Several run beside each other, for many of them mostly wait; what herds has a group
of its own, and runs one after the other. `TOWLINE_SOAK_DIVISOR=50` makes a quick try at a fiftieth of the figures, and
then the table says so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DIVISOR = int(os.environ.get("TOWLINE_SOAK_DIVISOR", "1"))
#: A hub that limits nobody: what is to be shown here is the client's.
AMPLE_HUB = """
import sys
from towline.server import Hub, HubLimits, csv_import, serve
ample = 10**9
limits = HubLimits(
    running_jobs=1000, starts=ample, calls=ample, jobs_of_owner=ample, watchers=ample, idle_attempts=1000,
    behind=ample
)
hub = Hub(sys.argv[2], limits=limits, accept_rate=20)
hub.job("csv_import", path="/api/imports/csv", media_types=("text/csv",))(csv_import(row_delay=float(sys.argv[3])))
serve(port=int(sys.argv[1]), hub=hub)
"""


def load_module(path: str) -> ModuleType:
    """A module of the quick suite, by its path under tests/."""
    file = Path(__file__).parents[1] / path
    name = f"soak_{path.replace('/', '_').removesuffix('.py')}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


servers = load_module("server/conftest.py")
hub_process, ready, following = servers.hub_process, servers.ready, servers.following
redis_server, free_port = servers.redis_server, servers.free_port


@pytest.fixture(scope="session")
def load() -> Callable[[str], ModuleType]:
    """Load a module of the quick suite: `load("transport/test_hostile.py")`."""
    return load_module


@pytest.fixture(scope="session")
def count() -> Callable[[int], int]:
    """How many of a promised number to do: all, or in a quick try a part."""
    return lambda full: max(4, full // DIVISOR)


@pytest.fixture
def ample_hub(hub_process: Any) -> Callable[..., Any]:
    """Start a real hub in a process of its own, without limits: `ample_hub(row_delay=0.01)`."""

    def start(row_delay: float = 0.0) -> Any:
        hub = hub_process(row_delay, AMPLE_HUB)
        hub.start()
        return hub

    return start


@pytest.fixture(scope="session")
def books() -> Callable[[int], bytes]:
    """A CSV file of so many rows."""
    return lambda rows: b"title,author,isbn\n" + b"Emma,Jane Austen,9780141439587\n" * rows


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.fixture
def reached(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Tell how far a test came: `reached("1,000 cuts: 0 wrong")`. Where it promises for several invariants, by name."""

    def tell(figure: str, invariant: str = "") -> None:
        request.node.user_properties.append(("reached", (invariant, figure)))

    return tell


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promises(invariant, what, promised): a row of the table of figures")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The promise travels with the report, from whichever worker, before anything can skip or fail the test."""
    case = f" ({item.callspec.id})" if hasattr(item, "callspec") else ""
    for mark in reversed(list(item.iter_markers("promises"))):
        invariant, what, promised = mark.args
        item.user_properties.append(("promises", (invariant, what + case, promised)))


def _rows(reports: list[pytest.TestReport]) -> Iterator[tuple[str, str, str, str, str]]:
    """A row for each promise. A test has several reports, of which the last knows most of what it told."""
    newest: dict[str, pytest.TestReport] = {}
    outcomes: dict[str, str] = {}
    for report in reports:
        known = newest.get(report.nodeid)
        if known is None or len(report.user_properties) >= len(known.user_properties):
            newest[report.nodeid] = report
        if report.failed:
            outcomes[report.nodeid] = "BROKEN"
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            outcomes[report.nodeid] = f"skipped: {reason.removeprefix('Skipped: ')}"
    for nodeid, report in newest.items():
        told = [value for name, value in report.user_properties if name == "reached"]
        for name, promise in report.user_properties:
            if name == "promises":
                invariant, what, promised = promise  # type: ignore[misc]
                figures = [figure for of, figure in told if of in ("", invariant)]  # type: ignore[misc]
                verdict = outcomes.get(nodeid, "holds" if figures else "told nothing")
                yield invariant, what, promised, "; ".join(figures) or "-", verdict


def _order(row: tuple[str, ...]) -> tuple[Any, ...]:
    letters, number, rest = re.match(r"([A-Za-z]+)(\d*)(.*)", row[0]).groups()  # type: ignore[union-attr]
    return len(letters), letters, int(number or 0), rest, row[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, whatever became of the tests."""
    reports = [
        report
        for category in terminalreporter.stats.values()
        for report in category
        if isinstance(report, pytest.TestReport)
    ]
    rows = sorted(_rows(reports), key=_order)
    if not rows:
        return
    part = "" if DIVISOR == 1 else f" (a try at 1/{DIVISOR} of them)"
    terminalreporter.section(f"figures{part}")
    terminalreporter.write_line("| invariant | what | promised | reached | verdict |")
    terminalreporter.write_line("|---|---|---|---|---|")
    for row in rows:
        terminalreporter.write_line("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |")
    broken = sum(row[-1] in ("BROKEN", "told nothing") for row in rows)
    skipped = sum(row[-1].startswith("skipped") for row in rows)
    held = len(rows) - broken - skipped
    terminalreporter.write_line(f"{held} of {len(rows)} figures hold{part}, {broken} do not, {skipped} were skipped")
