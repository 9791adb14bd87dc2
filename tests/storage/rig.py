"""The crash rig: it breaks a real store in a real folder in every way it can, and counts what it should not find.

    python tests/storage/rig.py COMMAND [--full]

prints one JSON object: how many cases were made, and a sentence for each that broke a promise. It is a program of
its own because it forks and kills; `test_crash.py` runs it quickly, `tests/soak` in full.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from towline._exceptions import TokenStoreError
from towline._secret import Secret
from towline.storage import CallerKey, KeyFile, KeyProvider, Record, RecordKey, _folder_posix
from towline.storage._record import with_cursor, with_end, with_token
from towline.storage._vault import Vault
from towline.storage.keys._keyset import parse, spell

ADDRESS = "https://api.example:443/ws/progress"
OTHER_KEY = bytes(range(100, 132))
NEVER = 0.0


# --- a store, and what stands in it ------------------------------------------------------------------------------


def vault(home: Path, provider: KeyProvider | None = None) -> Vault:
    """The store of a home folder, with its key file beside it, as the default would be."""
    return Vault(home / "state/app/tokens", app="app", provider=provider or KeyFile(home / "config/app/key"), now=clock)


def clock() -> float:
    """A wall clock that stands still: what was saved is then equal to what is read."""
    return 1_700_000_000.0


def key(name: str) -> RecordKey:
    """The key of a record. The records b and c are of two servers' jobs with the same id."""
    return RecordKey("towline", f"{ADDRESS}/c", "b") if name == "c" else RecordKey("towline", ADDRESS, name)


def at(seq: int) -> str:
    """A numbered cursor."""
    return f'{{"seq":{seq},"epoch":"e"}}'


def save(store: Vault, job: str, token: str) -> None:
    """A save as `TokenStore` makes it."""
    secret = Secret(token)

    def edit(old: Record | None) -> Record:
        secrets = {"X-Key": secret}
        return with_token(old, key(job), token=secret, expires=None, parameters=None, secrets=secrets, now=clock())

    store.change(key(job), edit, begin=True)


def value(store: Vault, job: str) -> object:
    """What stands on record for a job, in a form that can be compared and printed."""
    record = store.read(key(job))
    if record is None:
        return None
    return (record.token.reveal() if record.token else None, record.cursor, record.outcome)


@dataclass(frozen=True)
class Operation:
    """Something done to a store. `after` is what each job may hold once it was done; before it, what was seeded."""

    name: str
    run: Callable[[Vault], object]
    after: dict[str, object]
    seeded: bool = True


SEEDED: dict[str, object] = {"a": ("a-1", None, None), "b": ("b-1", at(4), None), "c": ("c-1", None, '"end"')}
OPERATIONS = (
    Operation("first save", lambda s: save(s, "a", "a-1"), {"a": ("a-1", None, None)}, seeded=False),
    Operation("save", lambda s: save(s, "b", "b-2"), {**SEEDED, "b": ("b-2", at(4), None)}),
    Operation(
        "save cursor",
        lambda s: s.change(key("b"), lambda old: old and with_cursor(old, at(9), now=clock()), begin=False),
        {**SEEDED, "b": ("b-1", at(9), None)},
    ),
    Operation(
        "mark ended",
        lambda s: s.change(key("a"), lambda old: old and with_end(old, '"done"', now=clock()), begin=False),
        {**SEEDED, "a": ("a-1", None, '"done"')},
    ),
    Operation("delete", lambda s: s.delete(key("a")), {**SEEDED, "a": None}),
    Operation("rotate", lambda s: s.rotate(), SEEDED),
    Operation("rewrap", lambda s: s.rewrap(CallerKey(OTHER_KEY)), SEEDED),
    Operation("delete all", lambda s: s.delete_all(), dict.fromkeys(SEEDED)),
)


def seed(home: Path) -> None:
    """Make the store that operations find."""
    store = vault(home)
    for job in SEEDED:
        save(store, job, f"{job}-1")
    store.change(key("b"), lambda old: old and with_cursor(old, at(4), now=clock()), begin=False)
    store.change(key("c"), lambda old: old and with_end(old, '"end"', now=clock()), begin=False)


def opened(home: Path) -> Vault:
    """The store as the next program would open it; after a rewrap, whichever provider wrapped it."""
    store = vault(home)
    keyset = home / "state/app/tokens/keyset.json"
    if keyset.exists() and b'"source":"caller"' in keyset.read_bytes():
        store = vault(home, CallerKey(OTHER_KEY))
    return store


def broken_promises(home: Path, operation: Operation, *, done: bool, may_be_new: bool = True) -> Iterator[str]:
    """Look at a store in which `operation` was cut short (or `done`), as the next program would, and mend it."""
    before: dict[str, object] = SEEDED if operation.seeded else dict.fromkeys(operation.after)
    try:
        store = opened(home)
        for job, new in operation.after.items():
            found = value(store, job)
            allowed = [new] if done else [before[job], new] if may_be_new else [before[job]]
            if found not in allowed:
                yield f"{job} holds {found}, allowed are {allowed}"
        report = store.verify()
        if report.findings:
            yield f"verify found {report.findings}"
        folder = home / "state/app/tokens"
        leftovers = [path.name for path in folder.glob("*.tmp")] if folder.exists() else []
        if len(leftovers) > 1:
            yield f"{len(leftovers)} leftovers"
        for path in home.rglob("*"):
            if path.stat().st_mode & 0o077:
                yield f"{path.name} has mode {path.stat().st_mode:o}"
        operation.run(store)
        for job, new in operation.after.items():
            found = value(opened(home), job)
            if found != new:
                yield f"done again, {job} holds {found}, not {new}"
        left = [path.name for path in folder.glob("*.tmp")]
        if left and operation.name in ("save", "delete", "rotate", "delete all"):
            yield f"done again, {left} are left over"
    except Exception as exc:
        yield f"{type(exc).__name__}: {exc}"


# --- the layer between the store and the operating system --------------------------------------------------------

_WATCHED = frozenset(
    "open fstat stat read write fsync fchmod rename unlink mkdir chmod close listdir flock".split()  # noqa: SIM905
)


class Layer:
    """Stands in for the modules `os` and `fcntl` and tells `before` of each call, by name and number."""

    def __init__(self, before: Callable[[str, int], None]) -> None:
        self._before = before
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name) if hasattr(os, name) else getattr(sys.modules["fcntl"], name)
        if name not in _WATCHED:
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            try:
                self._before(name, self.calls)
            except OSError:
                if name == "close":  # Linux has closed the descriptor, whatever it says
                    real(*args, **kwargs)
                raise
            return real(*args, **kwargs)

        return call


@contextmanager
def layered(layer: object) -> Iterator[None]:
    """Put a layer under the store."""
    real = _folder_posix.os, _folder_posix.fcntl
    _folder_posix.os = _folder_posix.fcntl = layer  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _folder_posix.os, _folder_posix.fcntl = real  # type: ignore[attr-defined]


@contextmanager
def homes(operation: Operation) -> Iterator[Callable[[], Path]]:
    """Gives fresh copies of the home folder that an operation finds."""
    with tempfile.TemporaryDirectory() as root:
        origin = Path(root) / "origin"
        origin.mkdir(0o700)
        if operation.seeded:
            seed(origin)
        count = itertools.count()
        last: list[Path] = []

        def fresh() -> Path:
            while last:
                shutil.rmtree(last.pop())
            last.append(Path(root) / f"home{next(count)}")
            shutil.copytree(origin, last[0])
            return last[0]

        yield fresh


@dataclass
class Figures:
    """What a command found."""

    cases: int = 0
    violations: list[str] = field(default_factory=list)
    more: dict[str, object] = field(default_factory=dict)

    def add(self, case: str, promises: Iterator[str] | list[str]) -> None:
        """Count a case."""
        self.cases += 1
        self.violations += [f"{case}: {promise}" for promise in promises]


# --- the commands ------------------------------------------------------------------------------------------------


def kill_each(full: bool) -> Figures:
    """SIGKILL instead of each file-system call of each operation; not in full, of those that can change the disk."""
    figures = Figures()
    for operation in OPERATIONS:
        with homes(operation) as fresh:
            calls = _calls(fresh(), operation)
            figures.more[operation.name] = len(calls)
            for number, name in enumerate(calls, 1):
                if not full and name in ("fstat", "stat", "read", "listdir", "close", "flock"):
                    continue
                home = fresh()
                child = os.fork()
                if child == 0:
                    _killed_at(home, operation, number)
                status = os.waitpid(child, 0)[1]
                problems = [] if os.WIFSIGNALED(status) else [f"the child was not killed: {status}"]
                problems += broken_promises(home, operation, done=False)
                figures.add(f"{operation.name}, killed at {name}, call {number}", problems)
    return figures


def _calls(home: Path, operation: Operation) -> list[str]:
    """The calls that an operation makes, in order; they are the same each time."""
    made: list[str] = []
    with layered(Layer(lambda name, count: made.append(name))):
        operation.run(vault(home))
    return made


def _killed_at(home: Path, operation: Operation, number: int) -> None:
    def before(name: str, count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        with layered(Layer(before)):
            operation.run(vault(home))
        status = 0
    finally:
        os._exit(status)


ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EINTR, errno.EACCES, errno.EDQUOT)


def fail_each(full: bool) -> Figures:
    """Each file-system call fails, once or from then on: a typed error, or success, but never a false one."""
    figures = Figures()
    for operation in OPERATIONS:
        with homes(operation) as fresh:
            for number, persistent in ((n, later) for n in itertools.count(1) for later in (False, True)):
                if persistent and number % 3 and not full:
                    continue
                reached = False
                for code in ERRNOS if full else ERRNOS[number % 6 : number % 6 + 1]:
                    failed: list[str] = []

                    def before(name: str, count: int) -> None:
                        if count == number or (persistent and count > number):  # noqa: B023 - called within the loop
                            failed.append(name)  # noqa: B023
                            raise OSError(code, os.strerror(code))  # noqa: B023

                    home = fresh()
                    done = True
                    problems = []
                    with layered(Layer(before)):
                        try:
                            operation.run(vault(home))
                        except TokenStoreError:
                            done = False
                        except Exception as exc:
                            problems.append(f"{type(exc).__name__}: {exc}")
                    if failed:
                        reached = True
                        if done and set(failed) & {"write", "fsync", "rename", "fchmod", "mkdir", "flock"}:
                            problems.append("success, though it failed")
                        # The new value may stand after an error only if it was the folder's last fsync that failed.
                        may_be_new = failed[0] in ("fsync", "close") or operation.name in _MANY_STEPS
                        problems += broken_promises(home, operation, done=done, may_be_new=may_be_new)
                        how = "and all later" if persistent else "alone"
                        figures.add(f"{operation.name}, {failed[0]} {number} {how} {errno.errorcode[code]}", problems)
                if not reached:
                    figures.more[operation.name] = number - 1
                    break
    return figures


_MANY_STEPS = ("rotate", "rewrap", "delete all", "first save", "delete")


# --- power cuts --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _File:
    """A file's content as programs see it, and as it was at its last fsync."""

    content: bytes = b""
    synced: bytes = b""


@dataclass(eq=False)
class _Dir:
    """A folder's names as programs see them, as they were at its last fsync, and what was done since, in order."""

    names: dict[str, _File | _Dir] = field(default_factory=dict)
    synced: dict[str, _File | _Dir] = field(default_factory=dict)
    pending: list[dict[str, _File | _Dir | None]] = field(default_factory=list)

    def apply(self, change: dict[str, _File | _Dir | None]) -> None:
        """Set names, or remove those set to None, in one step."""
        self.pending.append(change)
        _apply(self.names, change)


def _apply(names: dict[str, _File | _Dir], change: dict[str, _File | _Dir | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """Stands in for `os`, does everything for real, and keeps the model of what a power cut would leave.

    Until its fsync, a file's content may be lost, cut in half, zeroed or whole, and any part of a folder's changes of
    names may have reached the disk, in any order.
    """

    def __init__(self, home: Path, tell: Callable[[], None]) -> None:
        self.home = home
        self._tell = tell
        self.root = self._scan(home)
        self._open: dict[int, _File | _Dir] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name) if hasattr(os, name) else getattr(sys.modules["fcntl"], name)

    def _scan(self, path: Path) -> _Dir:
        names: dict[str, _File | _Dir] = {
            one.name: self._scan(one) if one.is_dir() else _File(one.read_bytes(), one.read_bytes())
            for one in path.iterdir()
        }
        return _Dir(names, dict(names))

    def _node(self, path: Path) -> _File | _Dir | None:
        if not path.is_relative_to(self.home):
            return None
        node: _File | _Dir | None = self.root
        for part in path.relative_to(self.home).parts:
            node = node.names.get(part) if isinstance(node, _Dir) else None
        return node

    def _folder(self, fd: int) -> _Dir:
        folder = self._open[fd]
        assert isinstance(folder, _Dir)
        return folder

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT and dir_fd is not None:
            self._open[fd] = _File()
            self._folder(dir_fd).apply({path: self._open[fd]})
            self._tell()
        else:
            node = self._node(Path(path)) if dir_fd is None else self._folder(dir_fd).names[path]
            if node is not None:
                self._open[fd] = node
        return fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        os.close(fd)

    def write(self, fd: int, data: Any) -> int:
        count = os.write(fd, data)
        file = self._open[fd]
        assert isinstance(file, _File)
        file.content += bytes(data)[:count]
        self._tell()
        return count

    def fsync(self, fd: int) -> None:
        os.fsync(fd)
        node = self._open.get(fd)
        if isinstance(node, _File):
            node.synced = node.content
        elif isinstance(node, _Dir):
            node.synced = dict(node.names)
            node.pending.clear()
        self._tell()

    def rename(self, source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        folder = self._folder(src_dir_fd)
        folder.apply({source: None, target: folder.names[source]})
        self._tell()

    def unlink(self, name: str, *, dir_fd: int) -> None:
        os.unlink(name, dir_fd=dir_fd)
        self._folder(dir_fd).apply({name: None})
        self._tell()

    def mkdir(self, path: Path, mode: int) -> None:
        os.mkdir(path, mode)  # noqa: PTH102 - this is the call the store makes
        parent = self._node(path.parent)
        assert isinstance(parent, _Dir)
        parent.apply({path.name: _Dir()})
        self._tell()

    def states(self, full: bool) -> Iterator[dict[str, bytes | None]]:
        """Every state the disk may be found in after a power cut now: content by path, None for a folder."""
        folders = [one for one in _folders(self.root) if one.pending]
        parts = [_parts(len(one.pending), full) for one in folders]
        for applied in itertools.product(*parts):
            chosen = {id(one): part for one, part in zip(folders, applied, strict=True)}
            for fate in ("lost", "half", "zero", "whole"):
                yield dict(_remains(self.root, "", chosen, fate))


def _parts(count: int, full: bool) -> list[tuple[int, ...]]:
    """Which of `count` changes of names reached the disk: any of them in full, else none, the first ones, or all."""
    if not full:
        return [tuple(range(upto)) for upto in range(count + 1)]
    return [part for size in range(count + 1) for part in itertools.combinations(range(count), size)]


def _folders(root: _Dir) -> Iterator[_Dir]:
    yield root
    for node in {**root.synced, **root.names}.values():
        if isinstance(node, _Dir):
            yield from _folders(node)


def _remains(
    folder: _Dir, prefix: str, chosen: dict[int, tuple[int, ...]], fate: str
) -> Iterator[tuple[str, bytes | None]]:
    names = dict(folder.synced)
    for index in chosen.get(id(folder), ()):
        _apply(names, folder.pending[index])
    for name, node in sorted(names.items()):
        if isinstance(node, _Dir):
            yield f"{prefix}{name}", None
            yield from _remains(node, f"{prefix}{name}/", chosen, fate)
        elif node.content == node.synced:
            yield f"{prefix}{name}", node.content
        else:
            size = len(node.content)
            fates = {"lost": node.synced, "half": node.content[: size // 2], "zero": bytes(size), "whole": node.content}
            yield f"{prefix}{name}", fates[fate]


def power_cut(full: bool) -> Figures:
    """A power cut after each step of each operation, and after its end, in every state the disk may be left in."""
    figures = Figures()
    for operation in OPERATIONS:
        with homes(operation) as fresh:
            found: dict[tuple[tuple[tuple[str, bytes | None], ...], bool], str] = {}

            def tell(done: bool = False) -> None:
                for state in disk.states(full):  # noqa: B023 - called within the loop
                    key = tuple(state.items())
                    found.setdefault((key, done), f"{operation.name}, step {len(found)}")  # noqa: B023

            disk = Disk(fresh(), tell)
            tell()
            with layered(disk):
                operation.run(vault(disk.home))
            tell(done=True)
            for (state, done), case in found.items():
                with tempfile.TemporaryDirectory() as root:
                    for name, content in state:
                        path = Path(root) / name
                        if content is None:
                            path.mkdir(0o700)
                        else:
                            path.touch(0o600)
                            path.write_bytes(content)
                    figures.add(case, broken_promises(Path(root), operation, done=done))
            figures.more[operation.name] = len(found)
    return figures


# --- processes ---------------------------------------------------------------------------------------------------


def kill_random(full: bool) -> Figures:
    """kill -9 at random while a child saves as fast as it can."""
    figures = Figures()
    kills = 5000 if full else 60
    chance = random.Random(7)
    acknowledged = leftover = 0
    with tempfile.TemporaryDirectory() as root:
        home = Path(root)
        save(vault(home), "job", "0")
        last = 0
        while figures.cases < kills:
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                _save_for_ever(home, last, write)
            os.close(write)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            acks = b"".join(iter(lambda fd=read: os.read(fd, 65536), b"")).split()  # type: ignore[misc]
            os.close(read)
            acked = int(acks[-1]) if acks else last
            acknowledged += len(acks)
            problems = []
            try:
                record = vault(home).read(key("job"))
                found = int(record.token.reveal()) if record and record.token else -1
                if found not in (acked, acked + 1):
                    problems.append(f"{acked} was acknowledged, {found} is there")
                last = max(found, acked)
            except TokenStoreError as exc:
                problems.append(f"unreadable: {exc}")
            left = len(list((home / "state/app/tokens").glob("*.tmp")))
            leftover += left
            if left > 1:
                problems.append(f"{left} leftovers")
            figures.add(f"kill {figures.cases}", problems)
    figures.more = {"acknowledged": acknowledged, "kills that left a temporary": leftover}
    return figures


def _save_for_ever(home: Path, last: int, ack: int) -> None:
    try:
        store = vault(home)
        for number in itertools.count(last + 1):
            save(store, "job", str(number))
            os.write(ack, b"%d\n" % number)
    finally:
        os._exit(1)


def flip_bits(full: bool) -> Figures:
    """Any bit flipped, any file cut short or made longer: a typed error, never another value, never an empty store."""
    figures = Figures()
    chance = random.Random(11)
    with tempfile.TemporaryDirectory() as root:
        home = Path(root)
        seed(home)
        for path in (*sorted((home / "state/app/tokens").iterdir()), home / "config/app/key"):
            good = path.read_bytes()
            jobs = [job for job in SEEDED if _holds(home, path, job)]
            spoiled = [good[:length] for length in range(len(good))] + [good + b"\0", good + bytes(256), good * 2]
            for index, bit in itertools.product(range(len(good)), range(8) if full else (None,)):
                bit = chance.randrange(8) if bit is None else bit
                spoiled.append(good[:index] + bytes((good[index] ^ 1 << bit,)) + good[index + 1 :])
            for number, data in enumerate(spoiled):
                path.write_bytes(data)
                figures.add(f"{path.name} spoiled {number}", list(_not_refused(home, jobs)))
            path.write_bytes(good)
    return figures


def _holds(home: Path, path: Path, job: str) -> bool:
    """Whether a job cannot be read without this file."""
    good = path.read_bytes()
    path.write_bytes(b"")
    try:
        vault(home).read(key(job))
    except TokenStoreError:
        return True
    finally:
        path.write_bytes(good)
    return False


def _not_refused(home: Path, jobs: list[str]) -> Iterator[str]:
    for job in jobs:
        try:
            found = value(vault(home), job)
        except TokenStoreError as exc:
            text = f"{exc!s} {exc!r}"
            if any(f"{one}-1" in text for one in SEEDED):
                yield "the error shows a token"
        except Exception as exc:
            yield f"untyped {type(exc).__name__}: {exc}"
        else:
            yield f"{job} was read as {found}"


def swap(full: bool) -> Figures:
    """Records, headers, key ids and wrapped keys put in each other's place: none is accepted."""
    figures = Figures()
    with tempfile.TemporaryDirectory() as root:
        home = Path(root)
        seed(home)
        folder = home / "state/app/tokens"
        with suppress(_Stop), layered(Layer(_stop_at_rename(3))):
            vault(home).rotate()  # cut short: two keys, and records under each of them
        records = sorted(folder.glob("*.tok"))
        good = {path: path.read_bytes() for path in records}
        ids = {data[8:24] for data in good.values()}
        figures.more["keys in use"] = len(ids)
        jobs = {path: next(job for job in SEEDED if _holds(home, path, job)) for path in records}
        for one, other in itertools.permutations(records, 2):
            for cut in (0, 4, 8, 24, 32, 44, len(good[one])):
                for data in (good[one][:cut] + good[other][cut:], good[other][:cut] + good[one][cut:]):
                    if data != good[one]:
                        one.write_bytes(data)
                        what = f"{jobs[other]} into {jobs[one]} at {cut}"
                        figures.add(what, list(_not_refused(home, [jobs[one]])))
            one.write_bytes(good[one])
        for path, key_id in itertools.product(records, ids):
            data = good[path][:8] + key_id + good[path][24:]
            if data != good[path]:
                path.write_bytes(data)
                figures.add(f"{jobs[path]} under another key id", list(_not_refused(home, [jobs[path]])))
                path.write_bytes(good[path])
        stranger = Path(root) / "other"
        stranger.mkdir(0o700)
        save(vault(stranger, KeyFile(home / "config/app/key")), "a", "a-1")
        theirs = stranger / "state/app/tokens"
        for mine, alien in itertools.product(records, theirs.glob("*.tok")):
            mine.write_bytes(alien.read_bytes())
            figures.add("another store's record", list(_not_refused(home, [jobs[mine]])))
            mine.write_bytes(good[mine])
        keyset = folder / "keyset.json"
        whole = keyset.read_bytes()
        keyset.write_bytes((theirs / "keyset.json").read_bytes())
        figures.add("another store's keyset", list(_not_refused(home, list(SEEDED))))
        found = parse(whole)
        for entries in itertools.permutations((*found.keys, found.names)):
            for fields in (("id", "made", "source", "kdf"), ("wrapped",), ()):
                mixed = [_with(old, new, fields) for old, new in zip((*found.keys, found.names), entries, strict=True)]
                forged = spell(msgspec.structs.replace(found, keys=tuple(mixed[:-1]), names=mixed[-1]))
                if forged != whole and {entry.id for entry in mixed[:-1]} != {entry.id for entry in found.keys}:
                    keyset.write_bytes(forged)
                    figures.add("keys of a keyset exchanged", list(_not_refused(home, list(SEEDED))))
        keyset.write_bytes(whole)
        for job, held in SEEDED.items():
            if value(vault(home), job) != held:
                figures.violations.append(f"{job} does not hold {held} after all was put back")
    return figures


def _with(old: Any, new: Any, fields: tuple[str, ...]) -> Any:
    return msgspec.structs.replace(old, **{name: getattr(new, name) for name in fields}) if fields else new


class _Stop(Exception):
    """The rig's own end of an operation."""


def _stop_at_rename(number: int) -> Callable[[str, int], None]:
    renames = itertools.count(1)

    def before(name: str, count: int) -> None:
        if name == "rename" and next(renames) == number:
            raise _Stop

    return before


def processes(full: bool) -> Figures:
    """Four processes begin one store at the same moment and save at once: nothing is lost, nothing fails."""
    figures = Figures()
    rounds, saves = (1, 1000) if full else (2, 25)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as root:
            home = Path(root)
            start, go = os.pipe()
            children = []
            for worker in range(4):
                child = os.fork()
                if child == 0:
                    os.close(go)
                    os.read(start, 1)  # returns at once for all, when the parent closes its end
                    _save_many(home, worker, saves)
                children.append(child)
            os.close(start)
            os.close(go)
            failed = [child for child in children if os.waitpid(child, 0)[1]]
            problems = [f"{len(failed)} processes failed"] if failed else []
            store = vault(home)
            record = store.read(key("shared"))
            count = int(record.parameters["count"]) if record else 0
            if count != 4 * saves:
                problems.append(f"{count} of {4 * saves} changes of the shared record are there")
            problems += [
                f"the last save of {worker} is not there"
                for worker in range(4)
                if value(store, f"own {worker}") != (f"{worker}-{saves - 1}", None, None)
            ]
            if list((home / "state/app/tokens").glob("*.tmp")):
                problems.append("a temporary is left over")
            figures.add("round", problems)
    figures.more = {"saves": rounds * saves * 8}
    return figures


def _save_many(home: Path, worker: int, saves: int) -> None:
    def count_up(old: Record | None) -> Record:
        record = old or Record(key=key("shared"), token=Secret("t"), saved=clock())
        return replace(record, parameters=MappingProxyType({"count": int(record.parameters.get("count", 0)) + 1}))

    status = 1
    try:
        store = vault(home)
        for number in range(saves):
            store.change(key("shared"), count_up, begin=True)
            save(store, f"own {worker}", f"{worker}-{number}")
        status = 0
    finally:
        os._exit(status)


# --- the kernel itself -------------------------------------------------------------------------------------------

_STRACED = {"flock": 1, "fsync": 2, "renameat": 1}  # how often a save makes the call


def strace(full: bool) -> Figures:
    """The kernel refuses a call, or kills at it, by strace's injection: what the layer above only plays."""
    figures = Figures()
    operation = next(one for one in OPERATIONS if one.name == "save")
    effects = ["signal=KILL", *(f"error={errno.errorcode[code]}" for code in ERRNOS)]
    cases = [
        (call, when + 1, effect) for call, count in _STRACED.items() for when in range(count) for effect in effects
    ]
    with homes(operation) as fresh:
        for call, when, effect in cases if full else cases[3::6]:
            home = fresh()
            command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={call}:{effect}:when={when}"]
            child = subprocess.run(
                [*command, sys.executable, __file__, "save-once", "--home", home], capture_output=True, text=True
            )
            problems = []
            done = child.returncode == 0
            if not done and effect == "signal=KILL" and child.returncode != -signal.SIGKILL:
                problems.append(f"ended with {child.returncode}: {child.stderr[-300:]}")
            if not done and effect != "signal=KILL" and child.stdout != "typed":
                problems.append(f"ended with {child.returncode}: {child.stderr[-300:]}")
            # Python tries again after EINTR (PEP 475), so that success is then a true one.
            if done and effect != "error=EINTR":
                problems.append("success, though it failed")
            promises = broken_promises(home, operation, done=done, may_be_new=call == "fsync" or "KILL" in effect)
            figures.add(f"{call} {when} {effect}", [*problems, *promises])
    return figures


def _save_once(home: Path) -> None:
    try:
        next(one for one in OPERATIONS if one.name == "save").run(vault(home))
    except TokenStoreError:
        sys.stdout.write("typed")
        sys.exit(3)


# --- a store that cannot hold its promises -----------------------------------------------------------------------


def _write_in_place(folder: Any, name: str, data: bytes | memoryview) -> None:
    """What a program does that thinks of nothing: the rig must find it out."""
    calls = _folder_posix.os
    fd = calls.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=folder._fd)
    try:
        calls.write(fd, bytes(data))
    finally:
        calls.close(fd)


COMMANDS: dict[str, Callable[[bool], Figures]] = {
    "kill-each": kill_each,
    "fail-each": fail_each,
    "kill-random": kill_random,
    "power-cut": power_cut,
    "flip-bits": flip_bits,
    "swap": swap,
    "processes": processes,
    "strace": strace,
}


ON_DISK = ("kill-random", "processes")


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=[*COMMANDS, "save-once"])
    parser.add_argument("--full", action="store_true", help="every case, not a choice of them")
    parser.add_argument("--naive", action="store_true", help="with a store that writes in place")
    parser.add_argument("--home", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "save-once":
        _save_once(arguments.home)
        return
    if arguments.naive:
        _folder_posix.Folder.write = _write_in_place  # type: ignore[method-assign]
    if arguments.command not in ON_DISK and os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"  # what is counted is calls, not the disk's speed
    os.umask(0)  # whatever mode is asked for is what a file gets
    begun = time.perf_counter()
    figures = COMMANDS[arguments.command](arguments.full)
    report = {
        "cases": figures.cases,
        "violations": len(figures.violations),
        "first": figures.violations[:12],
        **figures.more,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
