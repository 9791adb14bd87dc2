"""The machine knows no I/O, no clock and no randomness: a walk over what its modules import."""

import ast
from pathlib import Path

import pytest

import towline.statemachine

FOLDER = Path(towline.statemachine.__file__).parent
ALLOWED = {
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "hashlib",
    "html",
    "logging",
    "math",
    "types",
    "typing",
    "msgspec",
    "transitions",
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found.add("." * node.level + module if node.level else module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_only_pure_modules_are_imported(path: Path) -> None:
    foreign = {name for name in imports(path) if not name.startswith(".")}
    assert foreign <= ALLOWED
    beyond = {name for name in imports(path) if name.startswith("..")}
    assert beyond <= {".._exceptions"}
