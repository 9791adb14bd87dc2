"""The folder implementation for this operating system."""

from __future__ import annotations

import sys

from ._folder import TEMPORARY, Stamp, never, temporary_of

if sys.platform == "win32":
    from ._folder_windows import Folder
else:
    from ._folder_posix import Folder

__all__ = ["TEMPORARY", "Folder", "Stamp", "never", "temporary_of"]
