"""A protocol that reports what it reads, where the protocol is a user's."""

from __future__ import annotations

from typing import Any, ClassVar

from towline._facts import Received, Want
from towline.protocols._shared.recording import Observed


class Own:
    name, url, job, sources, promise = "own", "https://h/", "j", ("events",), "exact"
    headers: ClassVar[Any] = {"X-Key": "hunter2"}


def test_its_headers_may_be_a_mapping() -> None:
    def observe(want: Want, received: Received) -> None: ...

    assert Observed(Own(), observe).job == "j"  # type: ignore[arg-type]
