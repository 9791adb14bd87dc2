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

#: What may be lost within the promise of each protocol that is not exact throughout.
MAY_LOSE: Final[Mapping[str, str]] = {
    "bookstrack": "updates while the link is down",
    "messages": "updates while the link is down; without a state call, also the end",
    "event_stream": "updates without ids while the link is down; without ids and a state call, also the end",
    "polling": "what was true only between two polls",
    "openai_response": "after the stream expired: text deltas, which the whole text replaces (the end stays exact)",
    "mcp_task": "status messages between two polls",
    "a2a_task": "status messages that the agent's history does not hold; a chunk may come twice after a subscription",
    "langgraph_run": "if not resumable: updates in a gap, which is reported",
}


def protocol_class(name: str) -> Any:
    """Return the class of a built-in protocol, and load it. Raises `InvalidArgument` that lists the names."""
    if name not in CLASSES:
        raise InvalidArgument("protocol", f"{name!r} is not built in: these are {', '.join(CLASSES)}")
    return getattr(import_module(f"..{name}", __package__), CLASSES[name])
