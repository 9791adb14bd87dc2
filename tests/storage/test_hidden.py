"""No error of the store shows a token or a key: not in its text, not in a traceback that prints locals."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from towline._exceptions import InvalidArgument, TokenStoreError
from towline.storage import (
    CallerKey,
    CredentialKey,
    EnvironmentKey,
    KeyFile,
    KeyProvider,
    MemoryTokenStore,
    PassphraseKey,
    RecordKey,
    TokenStore,
)
from towline.storage._aead import Cipher
from towline.storage.keys import _passphrase
from towline.storage.keys._keyset import parse, unwrap_one

JOB = RecordKey("towline", "https://api.example:443/ws/progress", "j1")
ELSEWHERE = RecordKey("towline", "https://evil.example:443/ws/progress", "j1")
# Never spelled in one piece: a traceback shows source lines.
TOKEN = "-".join(["hunter", "2"])
PASSPHRASE = " ".join(["open", "sesame"])
KEY = bytes(range(64, 96))
KEY_TEXT = base64.b64encode(KEY)


@pytest.fixture(scope="module")
def rig() -> ModuleType:
    spec = importlib.util.spec_from_file_location("storage_rig", Path(__file__).parent / "rig.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_passphrase, "MEMORY_KIB", 64)
    monkeypatch.setattr(_passphrase, "PASSES", 1)


def shown_in(exc: BaseException | None) -> str:
    """What an exception and those behind it say, and the locals of every frame of Towline's that they passed."""
    shown: list[str] = []
    while exc is not None:
        shown += traceback.format_exception_only(exc)
        shown += [repr(vars(exc)), repr(exc.args)]
        for frame, _ in traceback.walk_tb(exc.__traceback__):
            if frame.f_globals["__name__"].startswith("towline."):
                shown += [f"{frame.f_code.co_name}: {name} = {value!r}" for name, value in frame.f_locals.items()]
        exc = exc.__cause__ or exc.__context__
    return "\n".join(shown)


def spellings(secret: bytes) -> list[str]:
    """How bytes may turn up in a text."""
    return [repr(secret)[2:-1], secret.hex(), base64.b64encode(secret).decode()]


def providers(home: Path) -> Iterator[KeyProvider]:
    yield CallerKey(KEY)
    yield KeyFile(home / "config" / "key")
    yield PassphraseKey(lambda: PASSPHRASE)


@dataclass
class Attempt:
    """One operation on a store of its own, in which one call to the operating system fails."""

    rig: ModuleType
    home: Path
    which: int

    def provider(self) -> KeyProvider:
        return list(providers(self.home))[self.which]

    def seed(self) -> None:
        """Make the store that is there before, and its key file; the first attempt's is copied for the others."""
        first = self.home.with_name("seeded")
        if first.exists():
            shutil.copytree(first, self.home)
            return
        (self.home / "config").mkdir(0o700, parents=True)
        (self.home / "config" / "key").touch(0o600)
        (self.home / "config" / "key").write_bytes(KEY_TEXT + b"\n")
        self.rig.save(self.rig.vault(self.home, self.provider()), "a", TOKEN)
        shutil.copytree(self.home, first)

    def run(self, operation: str, failing: int) -> tuple[TokenStoreError | None, bool]:
        """Returns the error, and whether the failing call was reached at all."""
        store = self.rig.vault(self.home, self.provider())
        calls = {
            "read": lambda: store.read(self.rig.key("a")),
            "find": lambda: store.find("a"),
            "rotate": store.rotate,
            "rewrap": lambda: store.rewrap(self.provider()),
        }

        def before(name: str, count: int) -> None:
            if count == failing:
                raise OSError(5, "Input/output error")

        layer = self.rig.Layer(before)
        with self.rig.layered(layer):
            try:
                calls.get(operation, lambda: self.rig.save(store, "a", TOKEN))()
            except TokenStoreError as exc:
                return exc, True
        return None, layer.calls >= failing

    def keys(self) -> list[str]:
        """What the key file holds, and the store's own keys, in every spelling."""
        files = [self.home / "config" / name for name in ("key", "key.tmp")]
        made = [file.read_text().strip() for file in files if file.exists()]
        keyset = self.home / "state/app/tokens/keyset.json"
        if not keyset.exists():
            return [text for text in made if text]
        provider = self.provider()
        entries = parse(keyset.read_bytes()).keys
        roots = [unwrap_one(entry, lambda one: Cipher(provider.open(one.kdf)), "root") for entry in entries]
        return [*made, *(text for root in roots for text in spellings(root))]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["caller", "file", "passphrase"])
@pytest.mark.parametrize("operation", ["first save", "save", "read", "find", "rotate", "rewrap"])
def test_whichever_call_fails(rig: ModuleType, tmp_path: Path, operation: str, which: int) -> None:
    failures = 0
    reached = True
    for number in itertools.count(1):
        attempt = Attempt(rig, tmp_path / str(number), which)
        if operation != "first save":
            attempt.seed()
        error, reached = attempt.run(operation, number)
        if not reached:
            break
        shown = shown_in(error)
        failures += error is not None
        assert not [secret for secret in (TOKEN, PASSPHRASE, *spellings(KEY), *attempt.keys()) if secret in shown]
    assert failures > 5


@pytest.mark.anyio
async def test_what_cannot_be_kept_is_not_shown(tmp_path: Path) -> None:
    long = TOKEN * 10000
    bad: list[tuple[str, float | None, dict[str, dict[str, str]]]] = [
        (long, None, {}),
        (TOKEN + "\ud800", None, {}),
        (TOKEN, -1, {}),
        (TOKEN, None, {"secrets": {"X-Key": long}}),
        (TOKEN, None, {"secrets": {"X-Key": TOKEN + "\ud800"}}),
        (TOKEN, None, {"parameters": {"": "v"}, "secrets": {"X-Key": TOKEN}}),
    ]
    for store in (TokenStore(tmp_path / "tokens", provider=CallerKey(KEY)), MemoryTokenStore()):
        for token, expires, more in bad:
            if isinstance(store, MemoryTokenStore) and long in (token, more.get("secrets", {}).get("X-Key")):
                continue  # nothing is too long for the memory
            with pytest.raises(InvalidArgument) as caught:
                await store.save(JOB, token, expires, **more)  # type: ignore[arg-type]
            assert TOKEN not in shown_in(caught.value)


@pytest.mark.anyio
async def test_spoiled_files_do_not_make_it_shown(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    await TokenStore(folder, provider=CallerKey(KEY)).save(JOB, TOKEN, secrets={"X-Key": TOKEN})
    record = next(folder.glob("*.tok"))
    good = record.read_bytes()
    for bad in (good[:-1], good[:-1] + bytes((good[-1] ^ 1,)), b"TWL1" + good[4:], b""):
        record.write_bytes(bad)
        with pytest.raises(TokenStoreError) as caught:
            await TokenStore(folder, provider=CallerKey(KEY)).read(JOB)
        for secret in (TOKEN, *spellings(KEY)):
            assert secret not in shown_in(caught.value)
    record.write_bytes(good)
    found = await TokenStore(folder, provider=CallerKey(KEY)).read(JOB)
    assert found is not None
    with pytest.raises(TokenStoreError) as caught:
        found.for_address(ELSEWHERE.protocol, ELSEWHERE.address)
    assert TOKEN not in shown_in(caught.value)


def test_a_key_that_is_nearly_right_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nearly = KEY_TEXT.decode()[:-1]
    monkeypatch.setenv("TOWLINE_KEY", nearly)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "towline-key").write_text(nearly)
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text(nearly)
    calls: list[Callable[[], object]] = [
        EnvironmentKey().create,
        CredentialKey().create,
        KeyFile(tmp_path / "key").create,
        lambda: CallerKey(KEY[:-1]),
    ]
    for call in calls:
        with pytest.raises(TokenStoreError) as caught:
            call()
        shown = shown_in(caught.value)
        assert nearly not in shown
        assert repr(KEY[:-1])[2:-1] not in shown
