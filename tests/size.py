"""Prints the lines of Python of the product by folder, and their sum: `python tests/size.py`. A report, no limit.

`python tests/size.py examples/firmware` prints those of a folder by file.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
#: Folders below which no file is part of the product.
NOT_PRODUCT: Final = frozenset({"benchmarks", "build", "docs", "examples", "fuzz", "tests"})


def main() -> None:
    folder = Path(sys.argv[1]) if sys.argv[1:] else None
    sizes: Counter[str] = Counter()
    for path in (ROOT / (folder or ".")).rglob("*.py"):
        place = path.relative_to(ROOT)
        if folder is None and (place.parts[0] in NOT_PRODUCT or any(part.startswith(".") for part in place.parts)):
            continue
        sizes[str(place.parent if folder is None else place)] += len(path.read_text("utf-8").splitlines())
    for folder, size in sorted(sizes.items()):
        print(f"{size:7,}  {folder}")
    print(f"{sizes.total():7,}  in all")


if __name__ == "__main__":
    main()
