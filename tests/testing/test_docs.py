"""The code in docs/testing.md runs, as the test module that it is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "testing.md"


def test_the_guide_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    module = tmp_path / "test_guide.py"
    module.write_text("\n".join(blocks), encoding="utf-8")
    shutil.copy(Path(__file__).parent / "recorded" / "events.jsonl", tmp_path / "job.jsonl")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(module)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    # 11 tests, and the cases of the door: 5 branches, the coverage and 10 walks on both backends.
    assert f"{11 + 2 * 16} passed" in run.stdout
