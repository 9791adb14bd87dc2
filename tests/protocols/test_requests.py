"""What protocols share to build requests: paths with a job's id, and checked headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline import InvalidArgument, Secret
from towline._headers import check_subprotocols, header_pairs
from towline.protocols._shared.requests import check_path, path_segment, with_query
from towline.transport import check_headers


@pytest.mark.parametrize("job", ["", ".", "..", "\ud800", 7, None])
def test_a_bad_job_id(job: object) -> None:
    with pytest.raises(InvalidArgument):
        path_segment(job)  # type: ignore[arg-type]


def test_a_job_id_leaves_no_character_with_a_meaning() -> None:
    assert path_segment("a/b?c#d%e;f é") == "a%2Fb%3Fc%23d%25e%3Bf%20%C3%A9"
    assert path_segment("../x") == "..%2Fx"


@given(st.text(min_size=1).filter(lambda job: job not in {".", ".."}))
def test_every_job_id_is_one_segment(job: str) -> None:
    try:
        encoded = path_segment(job)
    except InvalidArgument:
        assert any("\ud800" <= character <= "\udfff" for character in job)
        return
    assert encoded.isascii()
    assert not set(encoded) & set("/?#&;= \\")


@pytest.mark.parametrize(
    "template", ["/x", "/{job}#x", "/{job} x", "/{job}/{job}", "/{job}/{y}", "x/{job}", "/{job}/é"]
)
def test_a_bad_path(template: str) -> None:
    with pytest.raises(InvalidArgument):
        check_path("state_path", template)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "a\r\nX-B: b"},
        {"X-A": "hunter2\n"},
        {"X-A": "a\x00"},
        {"X-A": "é"},
        {"X-A": " a"},
        {"X A": "a"},
        {"": "a"},
        {"X-A\r\n": "a"},
        {"Host": "other"},
        {"sec-WebSocket-key": "k"},
        {"X-A": Secret("hunter2\n")},
        {"X-A": 7},
    ],
)
def test_a_bad_header(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        header_pairs(headers, reserved=frozenset({"host", "sec-websocket-key"}))
    assert "hunter2" not in f"{caught.value} {caught.value!r}"


def test_good_headers() -> None:
    pairs = [("Authorization", Secret("Bearer t")), ("X-A", "a b\tc"), ("X-A", "")]
    assert check_headers(pairs, reserved=frozenset()) == [
        (b"Authorization", b"Bearer t"),
        (b"X-A", b"a b\tc"),
        (b"X-A", b""),
    ]
    assert check_headers({"A": "b"}, reserved=frozenset()) == [(b"A", b"b")]


@pytest.mark.parametrize("names", ["chat", ["a b"], [""], ["a", "a"], ["é"], [1]])
def test_bad_subprotocols(names: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        check_subprotocols(names)


def test_a_query_parameter_is_encoded() -> None:
    url = with_query(with_query("wss://api.example/ws", "jobId", "a b&c"), "x", "é")
    assert url == "wss://api.example/ws?jobId=a%20b%26c&x=%C3%A9"
