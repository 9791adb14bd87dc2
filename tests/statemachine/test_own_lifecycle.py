"""The worked example of the documentation: its code runs, and prints what the page says it prints."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "own-lifecycle.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)


def test_the_page_does_what_it_says() -> None:
    namespace: dict[str, Any] = {"__name__": "own_lifecycle"}
    printed = ""
    kinds = []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        kinds.append(kind)
        if kind == "text":
            assert printed.strip() == text.strip()
            printed = ""
            continue
        assert not printed.strip(), "what a block prints must stand below it"
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, str(PAGE), "exec"), namespace)
        printed = out.getvalue()
    assert kinds.count("text") == 6
    assert not printed.strip()
