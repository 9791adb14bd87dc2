"""The documentation as a site: it builds without a warning, and every public name has a place on it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = (
    "towline",
    "towline.blocking",
    "towline.host",
    "towline.protocols",
    "towline.runner",
    "towline.server",
    "towline.server.reporter",
    "towline.statemachine",
    "towline.storage",
    "towline.testing",
    "towline.transport",
)
pytest.importorskip("sphinx", reason="no sphinx (make test-system)")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html", ROOT / "docs", folder]
    answer = subprocess.run([sys.executable, "-P", *command], capture_output=True, text=True, timeout=280)
    assert (answer.returncode, answer.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def described(site: Path) -> set[str]:
    """The last two parts of each name that the reference describes, and the last one alone."""
    from sphinx.util.inventory import InventoryFile

    with Path(site, "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, target: target)
    # A mapping of mappings since Sphinx 9, an object that holds them before.
    names = [name for group in getattr(inventory, "data", inventory).values() for name in group]
    return {name.split(".")[-1] for name in names} | {".".join(name.split(".")[-2:]) for name in names}


def test_every_public_name_is_described(described: set[str]) -> None:
    assert len(described) > 500
    missing = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items() if getattr(value, "__module__", None) == package
        ]
        if gone := [name for name in names if not name.startswith("_") and name not in described]:
            missing[package] = gone
    assert missing == {}


def test_every_field_of_an_option_is_described(described: set[str]) -> None:
    towline = importlib.import_module("towline")
    server = importlib.import_module("towline.server")
    options = (towline.Policy, towline.Backoff, towline.Limits, server.HubLimits, server.Lifetimes)
    fields = [f"{option.__name__}.{name}" for option in options for name in option.__annotations__]
    assert len(fields) > 60
    assert [field for field in fields if field not in described] == []


def test_every_command_and_option_has_a_place(site: Path) -> None:
    page = Path(site, "reference", "command-line.html").read_text()
    for word in ('id="towline-watch"', 'id="towline-serve"', "--protocol", "--record", "--redis", "--fd"):
        assert word in page


def test_every_page_of_the_docs_can_be_reached(site: Path) -> None:
    """Pages without a place in the contents are a warning of Sphinx; this counts that none is left out of the build."""
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 25
    assert [page for page in pages if not Path(site, page.with_suffix(".html")).is_file()] == []
