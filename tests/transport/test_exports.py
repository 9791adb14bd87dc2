"""What the package promises to export is there, and nothing public is forgotten."""

import types

from towline import transport


def test_all_is_what_is_public() -> None:
    public = {
        name
        for name, value in vars(transport).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert sorted(transport.__all__, key=str.lower) == sorted(public, key=str.lower)
    assert len(set(transport.__all__)) == len(transport.__all__)


def test_everything_public_is_explained() -> None:
    for name in transport.__all__:
        value = getattr(transport, name)
        if isinstance(value, type | types.FunctionType):
            assert value.__doc__, name
