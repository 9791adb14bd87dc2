"""Builds the wheel that users would install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_NOT_SOURCES = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "docs")


def build_wheel(folder: Path) -> Path:
    """Build it in `folder`, from a copy of the sources, so that files of an earlier build do not get into it."""
    shutil.copytree(ROOT, folder / "source", ignore=_NOT_SOURCES)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "./source"]
    subprocess.run(command, cwd=folder, check=True, timeout=50)
    (path,) = folder.glob("*.whl")
    return path
