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
from towline.cli._app import app
from towline.storage import CallerKey, PassphraseKey, RecordKey, TokenStore
from towline.storage.keys import _passphrase

ADDRESS = "https://api.example:443/ws/progress"
OTHER = "http://127.0.0.1:8470/ws/progress"
TOKEN = "hunter2-hunter2"


def key(job: str, address: str = ADDRESS) -> RecordKey:
    """The key of a job's record."""
    return RecordKey("towline", address, job)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two jobs, made as every program makes it."""
    monkeypatch.delenv("TOWLINE_KEY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TOWLINE_STORE", str(tmp_path / "tokens"))

    async def fill() -> None:
        store = TokenStore(tmp_path / "tokens", now=lambda: 1_700_000_000)
        parameters = {"url": f"wss://api.example/ws/progress?key={TOKEN}", "tries": 3}
        await store.save(key("j1"), TOKEN, 1_900_000_000, parameters=parameters, secrets={"X-Key": f"{TOKEN}-é"})
        await store.save(key("j2\x1b[2J"), TOKEN)
        await store.save_cursor(key("j1"), '{"seq":7,"epoch":"e1"}')
        await store.save_cursor(key("j2\x1b[2J"), json.dumps({"mark": TOKEN}))
        await store.mark_ended(key("j2\x1b[2J"), "{}")

    anyio.run(fill)
    return tmp_path / "tokens"


def run(*arguments: str, typed: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["tokens", *arguments], input=typed, terminal_width=200)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if "--reveal" not in arguments:
        assert TOKEN not in result.output
    assert "\x1b" not in result.output
    return result


def test_list_shows_jobs_and_no_token() -> None:
    assert run("list").stdout.splitlines() == [
        f"j1  towline  {ADDRESS}  live, saved 2023-11-14T22:13:20Z, expires 2030-03-17T17:46:40Z",
        f"j2\\x1b[2J  towline  {ADDRESS}  ended, saved 2023-11-14T22:13:20Z",
    ]
    first, second = (json.loads(line) for line in run("list", "--json").stdout.splitlines())
    assert (first["job"], first["protocol"], first["address"]) == ("j1", "towline", ADDRESS)
    assert (first["token"], first["secrets"], first["cursor"]) == ("hidden", "hidden", "7 of e1")
    assert (second["token"], second["secrets"], second["cursor"]) == ("hidden", "none", "hidden")


def test_show_reveals_only_when_told() -> None:
    hidden = run("show", "j1")
    assert "token      hidden\nsecrets    hidden\n" in hidden.stdout
    revealed = run("show", "j1", "--reveal").stdout
    assert f"token      {TOKEN}\n" in revealed
    assert f'secrets    {{"X-Key": "{TOKEN}-é"}}\n' in revealed
    facts = json.loads(run("show", "j1", "--reveal", "--json").stdout)
    assert (facts["token"], facts["secrets"]) == (TOKEN, {"X-Key": f"{TOKEN}-é"})
    assert facts["parameters"] == {"url": f"wss://api.example/ws/progress?key={TOKEN}", "tries": 3}
    assert facts["cursor"] == '{"seq":7,"epoch":"e1"}'
    assert TOKEN in json.loads(run("show", "j2\x1b[2J", "--reveal", "--json").stdout)["cursor"]
    missing = run("show", "j3")
    assert (missing.exit_code, "no record" in missing.stderr) == (5, True)
    empty = run("show", "")
    assert (empty.exit_code, "must not be empty" in empty.stderr) == (2, True)


def test_delete_takes_one_or_all(folder: Path) -> None:
    assert run("delete").exit_code == 2
    assert run("delete", "j1", "--all").exit_code == 2
    assert run("delete", "j1").exit_code == 0
    again = run("delete", "j1")
    assert (again.exit_code, "no record of the job 'j1'" in again.stderr) == (0, True)
    assert "j1" not in run("list").stdout
    assert run("delete", "--all").exit_code == 0
    assert list(folder.iterdir()) == []
    assert "no jobs" in run("list").stderr


def test_a_job_of_two_servers_is_chosen_by_its_url(folder: Path) -> None:
    store = TokenStore(folder, now=lambda: 1_700_000_000)
    anyio.run(store.save, key("j1", OTHER), f"{TOKEN}-2")
    assert [line.split()[:3] for line in run("list").stdout.splitlines()[:2]] == [
        ["j1", "towline", OTHER],
        ["j1", "towline", ADDRESS],
    ]
    for command in ("show", "delete"):
        several = run(command, "j1")
        assert several.exit_code == 5
        assert f"towline at {OTHER}, towline at {ADDRESS}" in several.stderr
        assert "--url" in several.stderr
    for url in ("wss://api.example/ws/progress", "wss://API.example:443/ws/progress?v=2", ADDRESS):
        assert json.loads(run("show", "j1", "--url", url, "--json").stdout)["address"] == ADDRESS
    assert (
        json.loads(run("show", "j1", "--url", "ws://127.0.0.1:8470/ws/progress", "--json").stdout)["address"] == OTHER
    )
    none = run("show", "j1", "--url", "wss://api.example/")
    assert (none.exit_code, "no record" in none.stderr) == (5, True)
    wrong = run("show", "j1", "--url", "api.example")
    assert (wrong.exit_code, "scheme" in wrong.stderr) == (2, True)
    assert run("delete", "--all", "--url", ADDRESS).exit_code == 2
    assert run("delete", "j1", "--url", "wss://api.example/").exit_code == 0
    assert run("delete", "j1", "--url", ADDRESS).exit_code == 0
    assert json.loads(run("show", "j1", "--json").stdout)["address"] == OTHER


def test_a_record_of_another_protocol_is_deleted_by_its_url(folder: Path) -> None:
    store = TokenStore(folder, now=lambda: 1_700_000_000)
    for port in (1, 2):
        anyio.run(store.save, RecordKey("event_stream", f"http://127.0.0.1:{port}/jobs/7", "/jobs/7"), None)
    assert run("delete", "/jobs/7").exit_code == 5
    assert run("delete", "/jobs/7", "--url", "http://127.0.0.1:1/jobs/7").exit_code == 0
    assert json.loads(run("show", "/jobs/7", "--json").stdout)["address"] == "http://127.0.0.1:2/jobs/7"
    anyio.run(store.save, RecordKey("mine", "http://127.0.0.1:2/jobs/7", "/jobs/7"), None)  # a protocol of one's own
    assert run("delete", "/jobs/7", "--url", "http://127.0.0.1:2/jobs/7").exit_code == 0
    assert run("show", "/jobs/7").exit_code == 5
    assert "/jobs/7" not in run("list").stdout


def test_a_damaged_record_is_deleted_by_its_url(folder: Path) -> None:
    store = TokenStore(folder)
    before = set(folder.glob("*.tok"))
    anyio.run(store.save, key("j3"), TOKEN)
    (record,) = set(folder.glob("*.tok")) - before
    record.write_bytes(b"")
    for command in ("show", "delete"):
        damaged = run(command, "j3")
        assert (damaged.exit_code, "towline tokens delete JOB --url URL" in damaged.stderr) == (5, True)
    assert run("delete", "j3", "--url", "wss://api.example/ws/progress").exit_code == 0
    assert not record.exists()


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
    anyio.run(store.save, key("j1"), TOKEN)
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
    assert "pass another --store" in run("list", "--store", __file__).stderr  # no folder
    folder.chmod(0o700)
    (tmp_path / "config" / "towline" / "key").unlink()
    assert "Restore it" in run("list").stderr
    other = tmp_path / "other"
    anyio.run(TokenStore(other, provider=CallerKey(bytes(range(32)))).save, key("j1"), TOKEN)
    assert "pass its provider" in run("list", "--store", str(other)).stderr
    monkeypatch.setenv("TOWLINE_KEY", base64.b64encode(bytes(range(32))).decode())
    third = tmp_path / "third"
    anyio.run(TokenStore(third).save, key("j1"), TOKEN)
    monkeypatch.setenv("TOWLINE_KEY", base64.b64encode(bytes(range(1, 33))).decode())
    assert "Set the key" in run("list", "--store", str(third)).stderr
    (third / "keyset.json").write_bytes(b'{"v":1}')
    assert "Use the version of Towline that wrote it" in run("list", "--store", str(third)).stderr
    assert run("delete", "--all", "--store", str(third)).exit_code == 0
