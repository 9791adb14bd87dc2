"""The built-in protocols by name, as records and the command line write it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from ..._exceptions import InvalidArgument

#: The class of each protocol. Its module has the protocol's name.
CLASSES: Final[Mapping[str, str]] = {
    "towline": "Towline",
    "bookstrack": "Bookstrack",
    "messages": "Messages",
    "event_stream": "EventStream",
    "polling": "Polling",
    "openai_response": "OpenAIResponse",
    "mcp_task": "MCPTask",
    "a2a_task": "A2ATask",
    "langgraph_run": "LangGraphRun",
}


def protocol_class(name: str) -> Any:
    """Return the class of a built-in protocol, and load it. Raises `InvalidArgument` that lists the names."""
    if name not in CLASSES:
        raise InvalidArgument("protocol", f"{name!r} is not built in: these are {', '.join(CLASSES)}")
    return getattr(import_module(f"..{name}", __package__), CLASSES[name])
