"""Prints the lines of Python of the product by folder, and their sum: `python tests/size.py`. A report, no limit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
#: Folders below which no file is part of the product.
NOT_PRODUCT: Final = frozenset({"benchmarks", "build", "docs", "examples", "fuzz", "tests"})


def main() -> None:
    sizes: Counter[str] = Counter()
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT)
        if place.parts[0] not in NOT_PRODUCT and not any(part.startswith(".") for part in place.parts):
            sizes[str(place.parent)] += len(path.read_text("utf-8").splitlines())
    for folder, size in sorted(sizes.items()):
        print(f"{size:7,}  {folder}")
    print(f"{sizes.total():7,}  in all")


if __name__ == "__main__":
    main()
