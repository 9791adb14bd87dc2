"""Where keys come from, and what happens when one is gone, wrong, weak or late: never a new, empty store."""

from __future__ import annotations

import base64
import sys
import threading
import time
from pathlib import Path

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.backends.chainer import ChainerBackend
from keyring.errors import KeyringLocked

from towline._exceptions import Damaged, InvalidArgument, KeyUnavailable, Locked, TokenStoreError, WrongKey
from towline._secret import Secret
from towline.storage import (
    CallerKey,
    CredentialKey,
    Kdf,
    KeyProvider,
    KeyringKey,
    NoKdf,
    PassphraseKey,
    RecordKey,
    TokenStore,
)
from towline.storage.keys import _keyring, _passphrase
from towline.storage.keys._keyset import Argon2id, Scrypt

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
KEY_TEXT = base64.b64encode(KEY).decode()


def key(job: str) -> RecordKey:
    """The key of a job's record."""
    return RecordKey("towline", "https://api.example:443/ws/progress", job)


async def token_of(store: TokenStore, job: str) -> Secret | None:
    """The token on record for a job."""
    record = await store.read(key(job))
    return None if record is None else record.token


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase costs 0.1 s and 64 MiB by design; here it is the path that counts, not the price."""
    monkeypatch.setattr(_passphrase, "MEMORY_KIB", 64)
    monkeypatch.setattr(_passphrase, "PASSES", 1)
    monkeypatch.setattr(_passphrase, "SCRYPT_N", 16)


# --- weak keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weak_key", [b"", KEY[:31], KEY + b"!", bytes(32), b"hunter2hunter2hunter2hunter2hunt"])
async def test_a_weak_key_is_refused(tmp_path: Path, weak_key: bytes) -> None:
    class Weak:
        """A program's own provider that does not look."""

        source = "caller"

        def create(self) -> tuple[Kdf, bytes]:
            return NoKdf(), weak_key

        def open(self, kdf: Kdf) -> bytes:
            return weak_key

    with pytest.raises(KeyUnavailable):
        CallerKey(weak_key)
    weak: KeyProvider = Weak()
    with pytest.raises(KeyUnavailable) as caught:
        await TokenStore(tmp_path / "tokens", provider=weak).save(key("j1"), "t")
    assert "hunter2" not in str(caught.value)
    assert list((tmp_path / "tokens").iterdir()) == []


# --- systemd credential ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [KEY_TEXT, KEY_TEXT + "\n"])
async def test_a_systemd_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.delenv("TOWLINE_KEY", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "credentials").mkdir()
    credential = tmp_path / "credentials" / "towline-key"
    credential.write_text(text)
    await TokenStore(tmp_path / "tokens").save(key("j1"), "t")
    assert not (tmp_path / "config").exists()
    assert await token_of(TokenStore(tmp_path / "tokens"), "j1") == Secret("t")
    assert await token_of(TokenStore(tmp_path / "tokens", provider=CredentialKey()), "j1") == Secret("t")
    for bad in (text[1:], text + "\n\n", "A" * 5000, ""):
        credential.write_text(bad)
        with pytest.raises(KeyUnavailable):
            await token_of(TokenStore(tmp_path / "tokens"), "j1")
    credential.unlink()
    with pytest.raises(KeyUnavailable, match="cannot be read"):
        await token_of(TokenStore(tmp_path / "tokens"), "j1")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(KeyUnavailable, match="no systemd credential"):
        await token_of(TokenStore(tmp_path / "tokens"), "j1")


# --- passphrase --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argon2", [True, False])
async def test_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argon2: bool) -> None:
    if argon2 and not _passphrase.has_argon2():
        pytest.skip("this OpenSSL has no Argon2")
    monkeypatch.setattr(_passphrase, "has_argon2", lambda: argon2)
    asked: list[str] = []

    def ask() -> str:
        asked.append("café")
        return "café"

    store = TokenStore(tmp_path / "tokens", provider=PassphraseKey(ask))
    assert await token_of(store, "j1") is None
    assert asked == []
    await store.save(key("j1"), "t")
    assert await token_of(store, "j1") == Secret("t")
    fresh = TokenStore(tmp_path / "tokens", provider=PassphraseKey(lambda: Secret("cafe\u0301")))
    assert await token_of(fresh, "j1") == Secret("t")
    assert (b"argon2id" if argon2 else b"scrypt") in (tmp_path / "tokens" / "keyset.json").read_bytes()
    with pytest.raises(WrongKey):
        await token_of(TokenStore(tmp_path / "tokens", provider=PassphraseKey(lambda: "cafe")), "j1")
    with pytest.raises(InvalidArgument):
        await token_of(TokenStore(tmp_path / "tokens", provider=PassphraseKey(lambda: "")), "j1")
    with pytest.raises(KeyUnavailable, match="pass its provider as provider="):
        await token_of(TokenStore(tmp_path / "tokens"), "j1")


async def test_a_person_is_asked_once_and_without_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "tokens"
    await TokenStore(folder, provider=PassphraseKey(lambda: "p")).save(key("j1"), "t")
    other = TokenStore(folder, provider=PassphraseKey(lambda: "p"))
    await token_of(other, "j1")
    asked: list[bool] = []

    def ask() -> str:
        other._vault.change(key("j1"), lambda old: None, begin=True)  # would wait if the lock were held
        asked.append(True)
        return "p"

    store = TokenStore(folder, provider=PassphraseKey(ask))
    for _ in range(3):
        assert await token_of(store, "j1") == Secret("t")
    assert len(asked) == 1


async def test_old_costs_are_noticed_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore(tmp_path / "tokens", provider=PassphraseKey(lambda: "p"))
    assert await store.needs_rewrap() is False
    await store.save(key("j1"), "t")
    assert await store.needs_rewrap() is False
    monkeypatch.setattr(_passphrase, "MEMORY_KIB", 128)
    assert await store.needs_rewrap() is True
    await store.rewrap()
    assert await store.needs_rewrap() is False
    fresh = TokenStore(tmp_path / "tokens", provider=PassphraseKey(lambda: "p"))
    assert await token_of(fresh, "j1") == Secret("t")


def test_what_counts_as_dated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_passphrase, "has_argon2", lambda: True)
    assert not _passphrase.is_dated(NoKdf())
    assert not _passphrase.is_dated(Argon2id(64, 1, 1, bytes(16)))
    assert _passphrase.is_dated(Argon2id(63, 9, 1, bytes(16)))
    assert _passphrase.is_dated(Scrypt(2**20, 8, 1, bytes(16)))
    monkeypatch.setattr(_passphrase, "has_argon2", lambda: False)
    assert not _passphrase.is_dated(Scrypt(16, 8, 1, bytes(16)))
    assert _passphrase.is_dated(Scrypt(8, 8, 1, bytes(16)))


async def test_a_passphrase_where_none_wrapped_the_store(tmp_path: Path) -> None:
    with pytest.raises(Damaged):
        PassphraseKey(lambda: "p").open(NoKdf())
    await TokenStore(tmp_path / "tokens", provider=CallerKey(KEY)).save(key("j1"), "t")
    with pytest.raises(KeyUnavailable, match="'caller'"):
        await token_of(TokenStore(tmp_path / "tokens", provider=PassphraseKey(lambda: "p")), "j1")


# --- keyring, with backends of our own that pass for the real ones -------------------------------------------------


class Trusted(KeyringBackend):
    """Keeps passwords in memory, under a name of the allow-list."""

    priority = 1  # type: ignore[assignment]

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


class PlainText(Trusted):
    """As keyrings.alt has it: a backend that everybody can read."""

    priority = 9  # type: ignore[assignment]


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Trusted:
    backend = Trusted()
    monkeypatch.setattr(_keyring, "ALLOWED", {f"{Trusted.__module__}.Trusted"})
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    return backend


async def test_a_keyring_keeps_the_key(tmp_path: Path, trusted: Trusted) -> None:
    await TokenStore(tmp_path / "tokens", provider=KeyringKey("app")).save(key("j1"), "t")
    assert [service for service, _ in trusted.kept] == ["app"]
    assert await token_of(TokenStore(tmp_path / "tokens", app="app"), "j1") == Secret("t")
    await TokenStore(tmp_path / "other", provider=KeyringKey("app")).save(key("j1"), "t")
    assert len(trusted.kept) == 2
    trusted.kept.clear()
    with pytest.raises(KeyUnavailable, match="no usable entry"):
        await token_of(TokenStore(tmp_path / "tokens", app="app"), "j1")
    with pytest.raises(Damaged):
        KeyringKey().open(NoKdf())


async def test_a_new_store_takes_the_keyring_if_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: Trusted
) -> None:
    monkeypatch.delenv("TOWLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    await TokenStore(tmp_path / "tokens").save(key("j1"), "t")
    assert len(trusted.kept) == 1
    assert not (tmp_path / "config").exists()
    monkeypatch.setattr(keyring, "get_keyring", PlainText)
    await TokenStore(tmp_path / "other").save(key("j1"), "t")
    assert (tmp_path / "config" / "towline" / "key").exists()


async def test_a_keyring_in_plain_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: Trusted
) -> None:
    plain = PlainText()
    monkeypatch.setattr(keyring, "get_keyring", lambda: plain)
    with pytest.raises(KeyUnavailable, match="PlainText"):
        await TokenStore(tmp_path / "tokens", provider=KeyringKey()).save(key("j1"), "t")
    monkeypatch.setattr(ChainerBackend, "backends", [plain, trusted])
    monkeypatch.setattr(keyring, "get_keyring", ChainerBackend)
    await TokenStore(tmp_path / "tokens", provider=KeyringKey()).save(key("j1"), "t")
    assert (len(plain.kept), len(trusted.kept)) == (0, 1)
    monkeypatch.setattr(ChainerBackend, "backends", [])
    with pytest.raises(KeyUnavailable):
        KeyringKey().check()


async def test_a_late_keyring_counts_as_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: Trusted
) -> None:
    await TokenStore(tmp_path / "tokens", provider=KeyringKey()).save(key("j1"), "t")
    user_is_back = threading.Event()
    monkeypatch.setattr(trusted, "get_password", lambda *_: user_is_back.wait(30))
    begun = time.monotonic()
    with pytest.raises(Locked, match="within"):
        await token_of(TokenStore(tmp_path / "tokens", provider=KeyringKey(seconds=0.05)), "j1")
    assert time.monotonic() - begun < 20
    user_is_back.set()


@pytest.mark.parametrize(
    ("failure", "error"), [(KeyringLocked("x"), Locked), (OSError("hunter2"), KeyUnavailable)], ids=["locked", "broken"]
)
async def test_a_keyring_that_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted: Trusted,
    failure: Exception,
    error: type[TokenStoreError],
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(trusted, "set_password", fail)
    with pytest.raises(error) as caught:
        await TokenStore(tmp_path / "tokens", provider=KeyringKey()).save(key("j1"), "t")
    assert caught.type is error
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert list((tmp_path / "tokens").iterdir()) == []


async def test_without_the_extra_the_keyring_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(KeyUnavailable, match="not installed"):
        KeyringKey().check()
    assert _keyring.usable("app") is None


def test_the_allow_list_names_what_keyring_has() -> None:
    import importlib

    for name in _keyring.ALLOWED:
        module, _, kind = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), kind), KeyringBackend), name


# --- a user without a home ----------------------------------------------------------------------------------------


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a user id that has no entry."""
    pwd = pytest.importorskip("pwd")

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
async def test_without_a_home_the_store_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for relative in ("", "here"):
        monkeypatch.setenv("XDG_STATE_HOME", relative)
        with pytest.raises(InvalidArgument, match=r"no home folder; name a folder .*TOWLINE_STORE.* or set HOME"):
            TokenStore()
    store = TokenStore(tmp_path / "tokens")
    with pytest.raises(KeyUnavailable, match="no home folder for a key file; set TOWLINE_KEY, or set HOME"):
        await store.save(key("j1"), "t")
    monkeypatch.setenv("TOWLINE_KEY", KEY_TEXT)
    await store.save(key("j1"), "t")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    await TokenStore().save(key("j1"), "t")


@pytest.mark.usefixtures("homeless")
async def test_a_key_file_that_cannot_be_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    await TokenStore(tmp_path / "tokens").save(key("j1"), "t")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    with pytest.raises(KeyUnavailable, match="no home folder"):
        await TokenStore(tmp_path / "tokens").read(key("j1"))
