"""`Secret` shows nothing, and compares as its text does."""

import pickle

import pytest

from towline._secret import Secret


def test_nothing_is_shown() -> None:
    secret = Secret("hunter2")
    shown = f"{secret} {secret!r} {secret!s} {secret:>40} {[secret]} {secret.reveal}"
    assert "hunter2" not in shown


def test_it_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(Secret("hunter2"))


def test_it_compares_as_its_text_does() -> None:
    assert Secret("å") == Secret("å")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
