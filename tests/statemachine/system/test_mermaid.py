"""What the real Mermaid understands of our pictures is what the table says: a parse alone would prove little."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from towline.statemachine import LIFECYCLE, Description, Table, describe, go, ignore, mermaid
from towline.statemachine._pictures import edge_label

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
def test_states_and_transitions_are_those_of_the_table(description: Description, tmp_path: Path) -> None:
    whole, overview = understood(tmp_path, mermaid(description), mermaid(description, overview=True))
    names = [state.name for state in description.states]
    for told in (whole, overview):
        assert [state for state in told["states"] if state[0].startswith("s")] == [
            [f"s{place}", [name]] for place, name in enumerate(names)
        ]
    ids = {name: f"s{place}" for place, name in enumerate(names)}
    edges = [
        [ids[cell.state], ids[branch.target or ""], edge_label(description, cell, branch)]
        for cell, branch in description.edges()
    ]
    begin = ["root_start", ids[description.initial], ""]
    ends = [[ids[state.name], "root_end", ""] for state in description.states if state.final]
    assert whole["transitions"] == [begin, *edges, *ends]
    pairs = {(source, target) for source, target, _ in edges if source != target}
    assert {tuple(way[:2]) for way in overview["transitions"][1 : -len(ends)]} == pairs
