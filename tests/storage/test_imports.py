"""What importing the store costs, and what it offers."""

from __future__ import annotations

import inspect
import subprocess
import sys

from towline import storage

LATE = ("cryptography", "keyring", "platformdirs", "secretstorage")


def test_importing_the_store_loads_no_cryptography() -> None:
    program = f"import sys, towline.storage; print([name for name in {LATE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_names_what_is_there() -> None:
    public = {
        name
        for name, value in vars(storage).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert set(storage.__all__) == public
    assert sorted(storage.__all__) == storage.__all__


def test_both_stores_do_all_that_a_store_does_and_say_so() -> None:
    for kind in (storage.TokenStore, storage.MemoryTokenStore):
        assert not inspect.isabstract(kind)
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            assert name.startswith("_") or inspect.getdoc(method), name
