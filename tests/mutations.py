"""Check the checks: break the engine on purpose, once in each place that matters, and see a test turn red.

Run it as `make mutations` (or `python tests/mutations.py [NAME ...]`). Each break is a change of text in a copy of the
sources; the tests that are to notice it run on that copy. A break whose text is gone, or that no test notices, fails.
It takes some minutes, so it is no part of the quick suite.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
# Where the top level's folders stand in the installed package.
PACKAGES = {
    "towline": "towline",
    "statemachine": "towline/statemachine",
    "transport": "towline/transport",
    "storage": "towline/storage",
}
MACHINE = ("tests/statemachine",)


class Mutation(NamedTuple):
    """One break: the text that is replaced (it must stand there once), and the tests that are to notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = MACHINE


MUTATIONS = (
    Mutation(
        "the generation test is dropped",
        "statemachine/lifecycle/_step.py",
        "if event.generation is not None and event.generation != snapshot.generation:",
        "if False:",
    ),
    Mutation(
        "the fetch number is not tested",
        "statemachine/lifecycle/_step.py",
        "return event.fetch is not None and event.fetch != snapshot.fetch",
        "return False",
    ),
    Mutation(
        "a timer's ticket is not tested",
        "statemachine/lifecycle/_step.py",
        "return snapshot.ticket(event.timer) != event.ticket",
        "return False",
    ),
    Mutation(
        "a cancelled fetch keeps its number",
        "statemachine/lifecycle/_draft.py",
        "            self.set(fetch=self.after.fetch + 1)\n            self.emit(CancelFetch())",
        "            self.emit(CancelFetch())",
    ),
    Mutation(
        "the terminal latch is dropped",
        "statemachine/lifecycle/_lifecycle.py",
        "        S.IDLE: ALREADY_OVER,",
        "        S.IDLE: _JOB_ENDED,",
    ),
    Mutation(
        "an end may be stale",
        "statemachine/lifecycle/_step.py",
        "    if isinstance(event, JobEnded):\n        return False\n",
        "",
    ),
    Mutation(
        "the count is reset on every join",
        "statemachine/lifecycle/_actions.py",
        "    draft.emit(ReleaseBuffer())\n",
        "    draft.emit(ReleaseBuffer())\n    draft.set(retries=0)\n",
    ),
    Mutation(
        "leaving a state leaves its timers running",
        "statemachine/lifecycle/_draft.py",
        "            if target not in RUNS_IN[timer]:\n",
        "            if False:\n",
    ),
    Mutation(
        "grace goes on in the foreground",
        "statemachine/lifecycle/_actions.py",
        "    draft.disarm(Timer.GRACE)",
        "    pass",
    ),
    Mutation(
        "the socket is not closed before the next dial",
        "statemachine/lifecycle/_draft.py",
        "            self.emit(CloseSocket(code=code, wait=wait))\n",
        "            pass\n",
    ),
    Mutation(
        "every farewell says 1000",
        "statemachine/lifecycle/_draft.py",
        "        return _GOING_AWAY, 0.0",
        "        return _DONE, 0.0",
    ),
    Mutation(
        "every silence reconnects at each look",
        "statemachine/lifecycle/_guards.py",
        "before.stalls >= 2 and not before.silence_redialled and",
        "before.stalls >= 2 and",
    ),
    Mutation(
        "a reconnect begins a new silence",
        "statemachine/lifecycle/_draft.py",
        "self.set(silence=self.after.silent_seconds(self.facts), in_step_since=None)",
        "self.set(silence=0.0, stalls=0, in_step_since=None)",
    ),
    Mutation(
        "a refusal is final whatever is known of the peer",
        "statemachine/lifecycle/_guards.py",
        "    return not (passing and draft.before.peer_known)",
        "    return True",
    ),
    Mutation(
        "an accepted cancel is an end by itself",
        "statemachine/lifecycle/_guards.py",
        "    if not before.cancel_accepted:\n        return False\n",
        "    if before.cancel_accepted:\n        return True\n",
    ),
    Mutation(
        "a failed state call loses the link",
        "statemachine/lifecycle/_classify.py",
        "if status in (401, 403) else Unavailable()",
        "if status in (401, 403) else Lost(cause=cause)",
        ("tests/towline/test_known_server.py",),
    ),
    Mutation(
        "a silence counts from the last look",
        "towline/engine/intake.py",
        "            self._last_state = None\n",
        "",
        ("tests/towline/test_silence.py",),
    ),
    Mutation(
        "the backoff is not capped",
        "statemachine/lifecycle/_policy.py",
        "return min(self.cap, max(",
        "return max(0.0, max(",
    ),
    Mutation(
        "dials are not spaced",
        "statemachine/lifecycle/_actions.py",
        "    if dials and not isinstance(draft.event, TokenRejected | SourceRefused):\n",
        "    if False:\n",
    ),
    Mutation(
        "the outage clock runs on during a hold",
        "statemachine/lifecycle/_actions.py",
        "draft.after.hold_until\n    draft.stop_clock()\n",
        "draft.after.hold_until\n",
    ),
    Mutation(
        "a rejected token is tried for ever",
        "statemachine/lifecycle/_guards.py",
        "return draft.facts.renewable and draft.before.rejections == 0",
        "return draft.facts.renewable",
    ),
    Mutation(
        "1000 from the server ends it",
        "statemachine/lifecycle/_classify.py",
        "_REFUSED_CLOSES: Final = frozenset({1002, ",
        "_REFUSED_CLOSES: Final = frozenset({1000, 1002, ",
    ),
    Mutation(
        "entering a state is not performed",
        "statemachine/_cells.py",
        "(*branch.actions, *self.enters.get(branch.target, ()))",
        "branch.actions",
    ),
    Mutation(
        "the work of a state goes on after it",
        "towline/runner/_runner.py",
        "                scope.cancel()\n",
        "                pass\n",
        ("tests/runner",),
    ),
    Mutation(
        "a result that comes too late counts",
        "towline/runner/_runner.py",
        "if is_late or (",
        "if (",
        ("tests/runner",),
    ),
    Mutation(
        "a request inside a step begins it again",
        "towline/runner/_runner.py",
        "if nested.depth > _MOST_NESTED:",
        "if False:",
        ("tests/runner",),
    ),
    Mutation(
        "a guard is not asked",
        "statemachine/_table.py",
        "if branch.when is not None and not branch.when(scratch):",
        "if False:",
    ),
    Mutation(
        "a message's size is not counted",
        "transport/websocket/_framing.py",
        "if not length >> 63 and self._message_size > self._message_room:",
        "if False:",
        ("tests/transport",),
    ),
    Mutation(
        "a message's fragments are not counted",
        "transport/websocket/_framing.py",
        "if self._fragments > self._limits.max_fragments:",
        "if False:",
        ("tests/transport/test_limits.py",),
    ),
    Mutation(
        "inflating has no end",
        "transport/websocket/_deflate.py",
        "piece = self._inflater.decompress(data, self._room + 1)\n                if len(piece) > self._room:",
        "piece = self._inflater.decompress(data)\n                if False:",
        ("tests/transport/test_limits.py",),
    ),
    Mutation(
        "1xx answers are skipped for ever",
        "transport/websocket/_handshake.py",
        "if self._informational > self._limits.max_informational:",
        "if False:",
        ("tests/transport/test_limits.py",),
    ),
    Mutation(
        "a cancelled write is forgotten",
        "transport/websocket/_websocket.py",
        "        except BaseException:\n            protocol.send_failed()",
        "        except ZeroDivisionError:\n            protocol.send_failed()",
        ("tests/transport/test_websocket.py",),
    ),
    Mutation(
        "nothing is synced to the disk",
        "storage/_folder_posix.py",
        "    os.fsync(fd)",
        "    pass",
        ("tests/storage",),
    ),
    Mutation(
        "what was held back is not delivered before the end",
        "towline/engine/delivery/publisher.py",
        "            self._publish(list(end.before))\n",
        "            pass\n",
        ("tests/engine/test_publisher.py",),
    ),
    Mutation(
        "a state behind what was shown is believed",
        "towline/engine/sequence/sequencer.py",
        "refused=reported.seq < before)",
        "refused=False)",
        ("tests/towline/test_sequencer.py",),
    ),
    Mutation(
        "a repeated event is handed on",
        "towline/engine/sequence/order.py",
        "return self.is_same_log(item.at) and item.first == self.seq + 1",
        "return self.is_same_log(item.at) and item.last >= self.seq",
        ("tests/towline/test_sequencer.py", "tests/towline/test_sequencer_parts.py"),
    ),
)


def lay_out(target: Path) -> Path:
    """Copy the project as it is installed to `target/site`, and its tests to `target/project`; returns the latter."""
    skip = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for folder, package in PACKAGES.items():
        shutil.copytree(ROOT / folder, target / "site" / package, dirs_exist_ok=True, ignore=skip)
    project = target / "project"
    project.mkdir()
    for path in ROOT.iterdir():
        if path.name in PACKAGES or path.name in ("build", "node_modules") or path.name.startswith("."):
            continue
        if path.is_dir():
            shutil.copytree(path, project / path.name, ignore=skip)
        else:
            shutil.copy(path, project / path.name)
    return project


def mutate(site: Path, mutation: Mutation) -> bool:
    """Break the copy; False where the text does not stand there once."""
    folder, _, rest = mutation.file.partition("/")
    path = site / PACKAGES[folder] / rest
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return False
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    return True


def run_tests(project: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run tests on the copy beside `project`, stopping at the first that fails."""
    # The files that the table is compared with would notice any change of it: they are no proof of anything else.
    drift = ("--deselect=tests/statemachine/test_pictures.py::test_the_committed_files_are_what_the_table_says",)
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *drift, *tests]
    environment = {**os.environ, "PYTHONPATH": str(project.parent / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def first_failure(output: str) -> str:
    """The first test that failed."""
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].partition(" - ")[0] if lines else output.strip()[-200:]


def main(names: list[str]) -> int:
    """Run all mutations, or those whose name holds one of `names`."""
    chosen = [mutation for mutation in MUTATIONS if not names or any(name in mutation.name for name in names)]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="towline-mutation-") as folder:
        whole = run_tests(
            lay_out(Path(folder)), tuple(sorted({test for mutation in chosen for test in mutation.tests}))
        )
        if whole.returncode:
            sys.stdout.write(f"the unbroken copy fails already: {first_failure(whole.stdout + whole.stderr)}\n")
            return 2
    for mutation in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="towline-mutation-") as folder:
            project = lay_out(Path(folder))
            if not mutate(Path(folder) / "site", mutation):
                told, fine = f"the text to break does not stand once in {mutation.file}", False
            else:
                run = run_tests(project, mutation.tests)
                fine = run.returncode in (1, 2, 4)  # 4: not even imported
                told = first_failure(run.stdout + run.stderr) if fine else "NO TEST NOTICED"
        survived += not fine
        seconds = time.monotonic() - began
        sys.stdout.write(f"{'ok  ' if fine else 'LIVE'} {mutation.name:<50} {seconds:5.1f} s  {told}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - survived} of {len(chosen)} breaks were noticed\n")
    return int(survived > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
