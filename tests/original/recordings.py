"""The recordings of the original backend, as data. `recorded/README.md` says what stands in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

JOB: Final = "job-1"
STATE_PATH: Final = f"/api/job-state/{JOB}"
TERMINAL: Final = ("job_complete", "error")

_FOLDER: Final = Path(__file__).parent / "recorded"


@dataclass(frozen=True)
class Recording:
    """One file of `recorded/`."""

    name: str

    @cached_property
    def entries(self) -> tuple[dict[str, Any], ...]:
        lines = (_FOLDER / f"{self.name}.jsonl").read_text(encoding="utf-8").splitlines()
        return tuple(json.loads(line) for line in lines)

    @property
    def version(self) -> str:
        """Which of the two backends it is of: `newest` or `first`."""
        return self.name.partition("-")[0]

    @property
    def began(self) -> float:
        return float(self.entries[0]["t"])

    @cached_property
    def story(self) -> tuple[tuple[float, str], ...]:
        """The job's own messages, those aside that only answer a client."""
        answers = ("ready_ack", "reconnected")
        return tuple((at, text) for at, text in self._received if json.loads(text)["type"] not in answers)

    def answer_on_socket(self, kind: str) -> str:
        """The message by which the server answered a client on the socket."""
        return next(text for _, text in self._received if json.loads(text)["type"] == kind)

    @property
    def _received(self) -> Iterator[tuple[float, str]]:
        return ((entry["t"] - self.began, entry["text"]) for entry in self.entries if entry["kind"] == "received")

    @property
    def closed(self) -> dict[str, Any]:
        """How the last socket ended."""
        return next(entry for entry in reversed(self.entries) if entry["kind"] == "closed")

    @property
    def ends(self) -> bool:
        """Whether the job's end is in it."""
        return any(json.loads(text)["type"] in TERMINAL for _, text in self.story)

    def calls(self, method: str, path: str) -> list[dict[str, Any]]:
        """The HTTP calls to one path."""
        return [
            entry
            for entry in self.entries
            if entry["kind"] == "http" and (entry["method"], entry["path"]) == (method, path)
        ]

    @cached_property
    def states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answers to the state call: before the job's first message, and from then on."""
        seen = [entry for entry in self.calls("GET", STATE_PATH) if entry["status"] != 401]
        if seen:
            return seen[0], seen[-1]
        like = Recording("newest-batch").states[1]  # all stories without such an answer are newest batches
        total = json.loads(self.entries[0]["body"])["data"]["totalCount"]
        state = {**like, "body": json.dumps({**json.loads(like["body"]), "totalCount": total})}
        return state, state
