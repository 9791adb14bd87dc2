"""`towline simulate`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from towline.cli._simulate import simulate, sparkline


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(simulate)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_herd_is_shown_and_drawn(tmp_path: Path) -> None:
    told = run("herd", "--clients", 50, "--accepts", 5, "--svg", tmp_path / "herd.svg")
    assert told.exit_code == 0
    lines = told.output.splitlines()
    assert [line[:24].strip() for line in lines[1:]][:3] == [
        "towline patient",
        "towline patient, spread",
        "towline original",
    ]
    assert "never" in lines[3]
    assert len(ET.parse(tmp_path / "herd.svg").getroot()) > 50


def test_a_flap_is_shown() -> None:
    told = run("flap", "--clients", 5)
    assert told.exit_code == 0
    assert "dials a minute" in told.output
    assert "told" not in told.output


def test_json_is_for_machines() -> None:
    told = json.loads(run("herd", "--clients", 10, "--only", "websockets", "--json").output)
    assert [outcome["algorithm"] for outcome in told] == ["websockets"]
    assert told[0]["clients"] == 10


def test_what_cannot_be_is_told() -> None:
    for arguments in (("herd", "--clients", 0), ("herd", "--accepts", 0), ("herd", "--only", "nothing")):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert "towline: " in refused.output


def test_bars() -> None:
    assert sparkline([0, 1, 500, 1000]) == " ▁▄█"
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "  "
