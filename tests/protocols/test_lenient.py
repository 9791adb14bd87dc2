"""The lenient reader: which values fit which kind of field, and what text is JSON."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, Struct

from towline.protocols.wire.lenient import (
    MAX_DEPTH,
    MAX_WHOLE,
    Count,
    Fraction,
    Sequence,
    Timestamp,
    as_text,
    build,
    load,
    unwrapped,
)


class Kinds(Struct, rename="camel"):
    needed: str
    count: Count | None = None
    place: Sequence | None = None
    share: Fraction | None = None
    number: float | None = None
    some_time: Timestamp = 0
    name: str = ""
    flag: bool = False
    anything: Any = None


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("count", 0, 0),
        ("count", 3.0, 3),
        ("count", "3", 3),
        ("count", "3.0", 3),
        ("count", MAX_WHOLE, MAX_WHOLE),
        ("count", str(MAX_WHOLE), MAX_WHOLE),
        ("place", "1", 1),
        ("share", 1.0000002, 1.0),
        ("share", 1, 1.0),
        ("share", "0.5", 0.5),
        ("number", "2.5", 2.5),
        ("number", -1, -1.0),
        ("someTime", "1.5", 1.5),
        ("someTime", "1970-01-01T00:00:01.5Z", 1500.0),
        ("someTime", "1970-01-01T01:00:01+01:00", 1000.0),
        ("someTime", "1970-01-01 00:00:01", 1000.0),
        ("name", 7, "7"),
        ("name", 7.0, "7"),
        ("name", 7.5, "7.5"),
        ("flag", True, True),
        ("flag", 0, False),
        ("flag", 1.0, True),
        ("flag", "False", False),
        ("anything", [1], [1]),
        ("needed", 5, "5"),
    ],
)
def test_what_fits(name: str, value: Any, read: Any) -> None:
    attribute = "some_time" if name == "someTime" else name
    found = getattr(build(Kinds, {name: value}), attribute)
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("count", (-1, 3.5, True, "three", "", [3], {}, 2**63, "9" * 19, "9" * 400, 1e300, -0.5)),
        ("place", (0, "0", -1)),
        ("share", (1.1, -0.1, 50, "50%", True)),
        ("number", (True, "NaN", "inf", 10**400, {})),
        ("someTime", ("now", "", True, "0001-01-01T00:00:00+23:59:59.999999x", [])),
        ("name", (True, None.__class__, [], {})),
        ("flag", (2, "yes", [], 0.5)),
        ("needed", ({},)),
    ],
)
def test_what_does_not_fit_is_left_out(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        assert build(Kinds, {name: value}) == Kinds(needed=""), value


def test_null_is_absent_and_what_is_given_is_not_read() -> None:
    fields = dict.fromkeys(("needed", "count", "flag", "anything", "unknown"))
    assert build(Kinds, {**fields, "name": []}, name="given") == Kinds(needed="", name="given")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":1}', {"a": 1}),
        ('\ufeff{"a":1}', {"a": 1}),
        ("[NaN,Infinity,-Infinity,1e400,1]", [None, None, None, None, 1]),
        (r'{"\ud800":"\udc00x","b":"\ud83d\ude00"}', {"\ufffd": "\ufffdx", "b": "\U0001f600"}),
        ('"a\nb"', "a\nb"),
        (str(2**70), 2**70),
        ("9" * 5000, None),
        ('["]}[{"]', ["]}[{"]),
        ('{"a":"\ud800"}', {"a": "\ufffd"}),
    ],
)
def test_what_is_json(text: str, value: Any) -> None:
    assert load(text) == value
    if text.isascii():
        assert load(text.encode()) == load(Raw(text.encode())) == value


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert load(b'\xef\xbb\xbf{"a":"\xff"}') == {"a": "\ufffd"}


@pytest.mark.parametrize(
    "text", ["", "x", "[", "[1", '{"a":}', '"', '"a', "[" * 100_000, "[" * 300 + "]" * 299, "]" * 300]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        load(text)


def test_what_is_nested_too_deep_is_left_out() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    twice = load(f'{{"a":{deep},"b":["[",{deep},1],"c":2}}')
    assert (twice["b"][0], twice["b"][2], twice["c"]) == ("[", 1, 2)
    found = load(f'{{"a":{deep},"c":"]"}}')
    assert found["c"] == "]"
    depth, value = 0, found["a"]
    while value:
        depth, value = depth + 1, value[0]
    assert value is None
    assert depth == MAX_DEPTH - 1
    # Many brackets that are not nested are no depth.
    assert load(f"[{'[],' * 1000}{{}}]")[-1] == {}


SCALARS = st.none() | st.booleans() | st.text(st.characters()) | st.floats()


@given(SCALARS | st.lists(SCALARS) | st.dictionaries(st.text(st.characters()), st.lists(SCALARS)))
def test_no_value_that_is_read_is_unwritable(value: Any) -> None:
    read = load(json.dumps(value))
    assert msgspec.json.decode(msgspec.json.encode(read)) == read
    assert not isinstance(read, float) or math.isfinite(read)


def test_an_envelope() -> None:
    inner = {"status": "x"}
    assert unwrapped({"data": inner, "metadata": {}}, "result", "status") is inner
    for value in ({"data": {"other": 1}}, {"data": 7}, {"status": "x"}, [], None):
        assert unwrapped(value, "status") is value


def test_a_value_for_people() -> None:
    assert [as_text(value) for value in (None, "a", 7, ["a"], {"a": None}, False)] == [
        *("", "a", "7", '["a"]', '{"a":null}', "false"),
    ]
