"""Print a constraint for each dependency of the product: the lowest version that `pyproject.toml` allows.

`.ci/test-all` installs with them. Tools of the extras `dev` and `docs` stay the newest.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints() -> list[str]:
    """`name==version; marker` for each requirement, sorted. The extras that are no part of the product are left out."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    groups = [group for name, group in extras.items() if name not in ("dev", "docs")]
    requirements = [each for group in (project["dependencies"], *groups) for each in group]
    return sorted({re.sub(r"^([\w.-]+)>=", r"\1==", requirement) for requirement in requirements})


if __name__ == "__main__":
    print("\n".join(constraints()))
