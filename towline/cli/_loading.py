"""`module:object` on the command line: an object in a module of the user's."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from .._exceptions import InvalidArgument


def load_object(name: str, argument: str) -> Any:
    """The object that `module:object` names; the module may be in the current folder.

    Raises `InvalidArgument` for the `argument` if there is none, or its module fails.
    """
    module, _, path = name.partition(":")
    if not module or not path:
        raise InvalidArgument(argument, f"{name!r} is not module:object")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a module of the user's may raise anything
        raise InvalidArgument(argument, f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
    return found
