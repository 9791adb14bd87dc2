"""The keyring provider against a real Secret Service: gnome-keyring on a private D-Bus, made here and ended here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("dbus-run-session", "gnome-keyring-daemon"))),
    reason="needs dbus-run-session and gnome-keyring-daemon: apt-get install dbus gnome-keyring",
)

PROGRAM = """
import asyncio, json, subprocess, sys
from pathlib import Path

import secretstorage

from towline import storage
from towline._exceptions import TokenStoreError

JOB = storage.RecordKey("towline", "https://api.example:443/ws/progress", "j1")
folder = Path(sys.argv[1])


def say(what, call):
    try:
        value = asyncio.run(call)
        print(json.dumps([what, "" if value is None else value.token.reveal()]))
    except TokenStoreError as exc:
        print(json.dumps([what, type(exc).__name__]))


def store():
    return storage.TokenStore(folder, provider=storage.KeyringKey("towline-test"))


"""

NO_COLLECTION = """
say("no collection", store().save(JOB, "t-1"))  # the service is started by D-Bus, and would ask
"""

UNLOCKED = """
subprocess.run(["gnome-keyring-daemon", "--unlock", "--components=secrets"], input=b"login", check=True,
               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
say("save", store().save(JOB, "t-1"))
say("load", store().read(JOB))
say("the store's own choice", storage.TokenStore(folder, app="towline-test").read(JOB))
bus = secretstorage.dbus_init()
collection = secretstorage.Collection(bus, "/org/freedesktop/secrets/aliases/default")
collection.lock()
say("locked", store().read(JOB))
"""


def run(home: Path, program: str) -> list[list[str]]:
    """Run a program on a D-Bus of its own, with a home of its own."""
    (home / "run").mkdir(mode=0o700)
    names = {"XDG_RUNTIME_DIR": "run", "XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DBUS_", "GNOME_", "PYTHON_"))}
    environ |= {"HOME": str(home), **{name: str(home / path) for name, path in names.items()}}
    done = subprocess.run(
        ["dbus-run-session", "--", sys.executable, "-c", program, str(home / "tokens")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # a short path: it holds a socket
        yield Path(folder)


def test_an_unlocked_service_keeps_the_key_and_a_locked_one_is_not_asked(home: Path) -> None:
    assert run(home, PROGRAM + UNLOCKED) == [
        ["save", ""],
        ["load", "t-1"],
        ["the store's own choice", "t-1"],
        ["locked", "Locked"],
    ]


def test_a_service_without_a_collection_is_not_asked_to_make_one(home: Path) -> None:
    assert run(home, PROGRAM + NO_COLLECTION) == [["no collection", "KeyUnavailable"]]
