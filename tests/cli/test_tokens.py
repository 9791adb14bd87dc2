"""`towline tokens`: what it shows, what it never shows, and the plain words for each failure."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner, Result

from towline import _exceptions as errors
from towline.cli import _tokens
from towline.storage import CallerKey, PassphraseKey, TokenStore
from towline.storage.keys import _passphrase

ORIGIN = "https://api.example:443"
TOKEN = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two jobs, made as every program makes it."""
    monkeypatch.delenv("TOWLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TOWLINE_STORE", str(tmp_path / "tokens"))

    async def fill() -> None:
        store = TokenStore(tmp_path / "tokens", now=lambda: 1_700_000_000)
        await store.save("j1", TOKEN, ORIGIN, 1_900_000_000)
        await store.save("j2\x1b[2J", TOKEN, ORIGIN)
        await store.save_cursor("j1", "e1", 7)
        await store.mark_ended("j2\x1b[2J", "{}")

    anyio.run(fill)
    return tmp_path / "tokens"


def run(*arguments: str, typed: str | None = None) -> Result:
    result = CliRunner().invoke(_tokens.app, list(arguments), input=typed, terminal_width=200)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if "--reveal" not in arguments:
        assert TOKEN not in result.output
    assert "\x1b" not in result.output
    return result


def test_list_shows_jobs_and_no_token() -> None:
    assert run("list").stdout.splitlines() == [
        "j1  https://api.example:443  live, saved 2023-11-14T22:13:20Z, expires 2030-03-17T17:46:40Z",
        "j2\\x1b[2J  https://api.example:443  ended, saved 2023-11-14T22:13:20Z",
    ]
    first = json.loads(run("list", "--json").stdout.splitlines()[0])
    assert (first["job"], first["token"], first["cursor"]) == ("j1", "hidden", "7 of e1")


def test_show_reveals_only_when_told() -> None:
    hidden = run("show", "j1")
    assert "token    hidden" in hidden.stdout
    assert f"token    {TOKEN}\n" in run("show", "j1", "--reveal").stdout
    assert json.loads(run("show", "j1", "--reveal", "--json").stdout)["token"] == TOKEN
    missing = run("show", "j3")
    assert (missing.exit_code, "no record" in missing.stderr) == (5, True)
    empty = run("show", "")
    assert (empty.exit_code, "must not be empty" in empty.stderr) == (2, True)


def test_delete_takes_one_or_all(folder: Path) -> None:
    assert run("delete").exit_code == 2
    assert run("delete", "j1", "--all").exit_code == 2
    assert run("delete", "j1").exit_code == 0
    assert run("delete", "j1").exit_code == 0
    assert "j1" not in run("list").stdout
    assert run("delete", "--all").exit_code == 0
    assert list(folder.iterdir()) == []
    assert "no jobs" in run("list").stderr


def test_rotate_and_verify(folder: Path) -> None:
    assert run("rotate").stdout == "2 records encrypted with a new key\n"
    (folder / "notes").touch(0o600)
    (folder / "0.tmp").touch(0o600)
    sound = run("verify")
    assert (sound.exit_code, sound.stdout.splitlines()[0]) == (0, "2 records are intact, 0 are not")
    assert "not a file of the store: notes" in sound.stdout
    assert "harmless leftover of an interrupted save: 0.tmp" in sound.stdout
    record = next(folder.glob("*.tok"))
    record.write_bytes(b"")
    damaged = run("verify")
    assert (damaged.exit_code, record.name in damaged.stderr) == (5, True)
    assert run("list").exit_code == 5


def test_where(folder: Path, tmp_path: Path) -> None:
    assert run("where").stdout.splitlines() == [
        f"folder   {folder}",
        f"key      the key file {tmp_path / 'config' / 'towline' / 'key'}",
    ]
    assert "none yet" in run("where", "--store", str(tmp_path / "other")).stdout


def test_a_passphrase_is_asked_for_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_passphrase, "MEMORY_KIB", 64)
    other = tmp_path / "other"
    store = TokenStore(other, provider=PassphraseKey(lambda: "open sesame"))
    anyio.run(store.save, "j1", TOKEN, ORIGIN)
    right = run("show", "j1", "--store", str(other), typed="open sesame\n")
    assert (right.exit_code, "open sesame" in right.output) == (0, False)
    wrong = run("show", "j1", "--store", str(other), typed="sesame\n")
    assert (wrong.exit_code, "Set the key or passphrase" in wrong.stderr) == (5, True)
    assert run("delete", "--all", "--store", str(other)).exit_code == 0


def test_every_failure_has_its_advice(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TokenStoreError)
    }
    assert {kind for kind, _ in _tokens.ADVICE} == kinds - {errors.TokenStoreError}
    folder.chmod(0o755)
    assert "chmod -R go-rwx" in run("list").stderr
    folder.chmod(0o700)
    (tmp_path / "config" / "towline" / "key").unlink()
    assert "Restore it" in run("list").stderr
    other = tmp_path / "other"
    anyio.run(TokenStore(other, provider=CallerKey(bytes(range(32)))).save, "j1", TOKEN, ORIGIN)
    assert "pass its provider" in run("list", "--store", str(other)).stderr
    monkeypatch.setenv("TOWLINE_KEY", base64.b64encode(bytes(range(32))).decode())
    third = tmp_path / "third"
    anyio.run(TokenStore(third).save, "j1", TOKEN, ORIGIN)
    monkeypatch.setenv("TOWLINE_KEY", base64.b64encode(bytes(range(1, 33))).decode())
    assert "Set the key" in run("list", "--store", str(third)).stderr
    (third / "keyset.json").write_bytes(b'{"v":9}')
    assert "Upgrade" in run("list", "--store", str(third)).stderr
    assert run("delete", "--all", "--store", str(third)).exit_code == 0
