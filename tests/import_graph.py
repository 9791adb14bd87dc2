"""Reads the imports of the product's sources, type-only and late ones included, and checks them.

`python tests/import_graph.py` prints the arrows between the parts and the number of circles. `test_layout.py` runs the
checks. Nothing is imported: the sources are parsed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
#: Where each package's sources are. The first fitting name counts, so the longer names come first.
PACKAGES: Final = {
    "towline.statemachine": ROOT / "statemachine",
    "towline.storage": ROOT / "storage",
    "towline.transport": ROOT / "transport",
    "towline": ROOT / "towline",
}

#: What every part may import: errors, secrets, text, and the helpers for tasks and the event loop.
LEAVES: Final = frozenset({"_exceptions", "_headers", "_secret", "_text"})
LOOP: Final = frozenset({"_loop", "_tasks"})
_FACTS: Final = LEAVES | {"_facts", "_updates"}
_SOURCES: Final = _FACTS | LOOP | {"transport"}
_ENGINE: Final = _SOURCES | {"runner", "sources", "statemachine", "storage"}
_CONNECTION: Final = _ENGINE | {"_connection", "_target", "protocols"}
#: The parts that each part may import. A part is a module or folder directly below `towline`.
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "_exceptions": frozenset(),
    "_secret": frozenset(),
    "_text": frozenset(),
    "_headers": frozenset({"_exceptions", "_secret"}),
    "_loop": frozenset(),
    "_tasks": LEAVES | {"_loop"},
    "_updates": LEAVES,
    "_facts": LEAVES | {"_updates"},
    "statemachine": LEAVES,
    "storage": LEAVES,
    "transport": LEAVES | LOOP,
    "protocols": _FACTS,
    "runner": LEAVES | LOOP | {"statemachine"},
    "sources": _SOURCES,
    "engine": _ENGINE,
    "_target": _SOURCES | {"protocols", "sources", "storage"},
    "_connection": _ENGINE | {"_target", "engine", "protocols"},
    "host": _CONNECTION,
    "server": _CONNECTION,
    "testing": _CONNECTION,
    "blocking": _CONNECTION | {"host"},
    "towline": _CONNECTION,
    "cli": _CONNECTION | {"blocking", "host", "server", "testing", "towline"},
    "__main__": frozenset({"cli"}),
}

#: Parts whose files do no I/O, read no clock and draw no random number.
PURE: Final = frozenset({"protocols", "statemachine"})
#: The other packages that their files may import.
PURE_IMPORTS: Final = frozenset(
    {
        "__future__",
        "base64",
        "collections",
        "contextlib",
        "dataclasses",
        "datetime",
        "enum",
        "functools",
        "hashlib",
        "heapq",
        "html",
        "importlib",
        "inspect",
        "itertools",
        "json",
        "logging",
        "math",
        "msgspec",
        "operator",
        "re",
        "textwrap",
        "transitions",
        "types",
        "typing",
        "urllib.parse",
    }
)
#: Methods that read the clock, of `datetime` and `date`.
CLOCK_READERS: Final = frozenset({"now", "today", "utcnow"})

#: The most Python files of a folder, apart from its `__init__`.
MOST_FILES: Final = 12


def modules() -> dict[str, Path]:
    """Every module of the product by its import name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def _imported(path: Path, package: list[str], known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import x` imports the module x, if there is one.
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        else:
            continue
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = modules()
    arrows = {}
    for name, path in known.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        arrows[name] = set(_imported(path, package, known)) - {name}
    return arrows


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other (Tarjan's strongly connected components of two or more)."""
    found: list[list[str]] = []
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            place = stack.index(name)
            group = stack[place:]
            del stack[place:]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(arrows):
        if name not in order:
            visit(name)
    return found


def part(module: str) -> str:
    """The part that a module belongs to: the name below `towline`, or `towline` for the package's own file."""
    return module.split(".")[1] if "." in module else module


def part_arrows(arrows: Mapping[str, set[str]]) -> dict[tuple[str, str], list[str]]:
    """The arrows between parts, each with the modules that make it."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in sorted(arrows):
        for target in sorted({part(other) for other in arrows[name]} - {part(name)}):
            found.setdefault((part(name), target), []).append(name)
    return found


def impurities(path: Path) -> Iterator[str]:
    """The imports and clock readings of a file that a pure part must not have, with their lines."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCK_READERS:
            yield f"{path.relative_to(ROOT)}:{node.lineno}: reads the clock with .{node.func.attr}()"
        for name in names:
            if PURE_IMPORTS.isdisjoint((name, name.partition(".")[0])):
                yield f"{path.relative_to(ROOT)}:{node.lineno}: imports {name}"


def folder_sizes() -> dict[str, int]:
    """The number of Python files in each folder of the product, apart from its `__init__`."""
    sizes: dict[str, int] = {}
    for path in modules().values():
        folder = str(path.parent.relative_to(ROOT))
        sizes[folder] = sizes.get(folder, 0) + (path.name != "__init__.py")
    return sizes


def main() -> int:
    arrows = graph()
    between = part_arrows(arrows)
    wrong = 0
    for name in sorted({source for source, _ in between}):
        print(name)
        for source, target in sorted(between):
            if source == name:
                is_allowed = target in ALLOWED[source]
                wrong += not is_allowed
                mark = "" if is_allowed else "  not allowed: " + ", ".join(between[source, target])
                print(f"    → {target}{mark}")
    found = circles(arrows)
    for group in found:
        print("circle:", *group)
    print(f"{len(arrows)} modules, {wrong} arrows that are not allowed, {len(found)} circles")
    return int(bool(wrong or found))


if __name__ == "__main__":
    sys.exit(main())
