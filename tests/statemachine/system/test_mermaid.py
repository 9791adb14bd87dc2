"""What the real Mermaid understands of our pictures is what the table says: a parse alone would prove little."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from towline.statemachine import LIFECYCLE, Description, Table, describe, events_markdown, go, ignore

ROOT = Path(__file__).parents[3]
MODULES = Path(os.environ.get("TOWLINE_NODE_MODULES", ROOT / ".venv" / "node" / "node_modules"))

if shutil.which("node") is None or not (MODULES / "mermaid").is_dir():
    pytest.skip("no node, or no mermaid and jsdom in .venv/node (make test-system)", allow_module_level=True)


class Odd(Enum):
    """Names that Mermaid would take for something else."""

    ONE = 'a;b:c<d>#e"f{g}h`i\\j'
    TWO = "end"
    THREE = "state [*] --> note"


class Ring(Enum):
    BELL = "ring; the: <bell> #1"


def odd(scratch: Any) -> bool:
    """It is odd."""
    return True


ODD: Table[Odd, Ring, Any, Any] = Table(
    name="odd",
    states=Odd,
    events=Ring,
    initial=Odd.ONE,
    final=frozenset({Odd.THREE}),
    cells={
        Ring.BELL: {
            Odd.ONE: (go(Odd.TWO, when=odd), go(Odd.ONE)),
            Odd.TWO: (go(Odd.THREE),),
            Odd.THREE: ignore("over"),
        }
    },
    waits=dict.fromkeys(Odd, "waits"),
)


def understood(folder: Path, *texts: str) -> list[dict[str, Any]]:
    files = [folder / f"{place}.mmd" for place, _ in enumerate(texts)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    command = ["node", str(Path(__file__).with_name("mermaid.mjs")), str(MODULES), *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    told: list[dict[str, Any]] = json.loads(run.stdout)
    return told


@pytest.mark.parametrize("description", [describe(LIFECYCLE), describe(ODD)], ids=lambda words: words.name)
def test_each_picture_of_an_event_has_the_moves_of_the_table(description: Description, tmp_path: Path) -> None:
    """From the boxes of states over the boxes of guards to the boxes of targets: every branch that moves, in order."""
    texts = re.findall(r"```mermaid\n(.*?)```", events_markdown(description), re.S)
    drawn = [event for event in description.events if any(cell.event == event.name for cell, _ in description.edges())]
    for event, told in zip(drawn, understood(tmp_path, *texts), strict=True):
        boxes, arrows = told["boxes"], dict.fromkeys(map(tuple, told["arrows"]))
        seen = set()
        for start, end in arrows:
            if start.startswith("s"):
                ends = [end] if end.startswith("t") else [target for guard, target in arrows if guard == end]
                guards = [""] if end.startswith("t") else boxes[end].split("<br>")
                for state in boxes[start].split("<br>"):
                    seen |= {(state, guard, boxes[target]) for guard in guards for target in ends}
        assert seen == {
            (cell.state, f"{place} {branch.guard or 'else'}" if len(cell.branches) > 1 else "", branch.target)
            for cell in description.cells
            for place, branch in enumerate(cell.branches, 1)
            if cell.event == event.name and branch.target is not None
        }
