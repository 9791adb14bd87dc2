"""URLs, origins, job ids, headers: what passes, what is refused, and that no refusal shows a secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towline._exceptions import InvalidArgument
from towline.transport import Origin, parse_origin, parse_url
from towline.transport._url import is_loopback


@pytest.mark.parametrize(
    ("text", "origin", "target", "host_header"),
    [
        ("wss://api.example", "https://api.example:443", "/", "api.example"),
        ("wss://API.Example:8443/a/b?c=d", "https://api.example:8443", "/a/b?c=d", "api.example:8443"),
        ("WSS://api.example:443/", "https://api.example:443", "/", "api.example"),
        ("ws://127.0.0.1:80/x", "http://127.0.0.1:80", "/x", "127.0.0.1"),
        ("ws://[::1]:9/", "http://[::1]:9", "/", "[::1]:9"),
        ("wss://[2001:DB8:0:0::1]/", "https://[2001:db8::1]:443", "/", "[2001:db8::1]"),
        ("wss://straße.de/", "https://xn--strae-oqa.de:443", "/", "xn--strae-oqa.de"),
        ("wss://my_service.local:1/", "https://my_service.local:1", "/", "my_service.local:1"),
        ("wss://" + "a" * 63 + ".de/", f"https://{'a' * 63}.de:443", "/", "a" * 63 + ".de"),
        ("wss://" + "a." * 126 + "a/", f"https://{'a.' * 126}a:443", "/", "a." * 126 + "a"),
        ("wss://h.example?q=1", "https://h.example:443", "/?q=1", "h.example"),
        ("wss://H.example./a", "https://h.example:443", "/a", "h.example"),
        ("wss://h.example.:8443/", "https://h.example:8443", "/", "h.example:8443"),
        ("ws://127.0.0.1./", "http://127.0.0.1:80", "/", "127.0.0.1"),
        ("ws://localhost./", "http://localhost:80", "/", "localhost"),
        ("wss://straße.de./", "https://xn--strae-oqa.de:443", "/", "xn--strae-oqa.de"),
    ],
)
def test_a_good_url(text: str, origin: str, target: str, host_header: str) -> None:
    url = parse_url(text)
    assert (str(url.origin), url.target, url.host_header) == (origin, target, host_header)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "api.example",
        "/path",
        "http://api.example/",
        "ftp://api.example/",
        "wss://",
        "wss:///path",
        "wss://api.example/#part",
        "wss://api.example/#",
        "wss://user:pass@api.example/",
        "wss://@api.example/",
        "wss://api.example:0/",
        "wss://api.example:65536/",
        "wss://api.example:x/",
        "wss://api.example/é",
        "wss://api.example/a b",
        "wss://api.example/a\r\nX: y",
        "wss://api\t.example/",
        "wss://" + "a" * 64 + ".example/",
        "wss://" + "a" * 70 + ".example/",
        "wss://" + "a." * 125 + "aa.a/",
        "wss://-a.example/",
        "wss://a..example/",
        "wss://a.example../",
        "wss://./",
        "wss://127.1./",
        "wss://127.1/",
        "wss://0x7f.0.0.0x1/",
        "wss://2130706433/",
        "wss://[::1/",
        "wss://[fe80::1%25]x/",
        "wss://[fe80::1%25a b]/",
        "wss://xn--a.example/",
        "wss://exa*mple/",
        "wss://a\x00b/",
    ],
)
def test_a_bad_url(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_url(text)


def test_only_text_is_a_url() -> None:
    with pytest.raises(InvalidArgument):
        parse_url(b"wss://api.example/")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("job.localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("::", False),
        ("0.0.0.0", False),
    ],
)
def test_a_plain_line_goes_to_loopback_only(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    text = f"ws://[{host}]/" if ":" in host else f"ws://{host}/"
    assert not parse_url(text, allow_insecure=True).origin.secure
    if loopback:
        parse_url(text)
    else:
        with pytest.raises(InvalidArgument, match="allow_insecure"):
            parse_url(text)


def test_a_log_line_has_no_query() -> None:
    url = parse_url("wss://api.example/ws?token=hunter2")
    assert str(url) == "wss://api.example/ws"
    assert "hunter2" not in f"{url!r} {url} {url.origin!r}"


@pytest.mark.parametrize(
    "text",
    [
        "wss://api.example/é?token=hunter2",
        "wss://api.example:x/?token=hunter2",
        "http://api.example/?token=hunter2",
        "wss://u:hunter2@api.example/",
    ],
)
def test_no_refusal_shows_the_query(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_url(text)
    assert "hunter2" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"


def test_ws_and_http_are_one_origin() -> None:
    assert parse_url("wss://api.example/a").origin == parse_origin("https://api.example").origin
    assert parse_url("ws://localhost:80/a").origin == parse_origin("http://localhost").origin
    assert parse_url("wss://api.example:444/a").origin != parse_origin("https://api.example").origin
    assert str(Origin(True, "::1", 443)) == "https://[::1]:443"


def test_a_final_dot_is_for_the_resolver_alone() -> None:
    dotted, plain = parse_url("wss://hub.svc.cluster.local./a"), parse_url("wss://hub.svc.cluster.local/a")
    assert (dotted.absolute, plain.absolute, parse_url("ws://127.0.0.1./").absolute) == (True, False, False)
    assert dotted.origin == plain.origin
    assert dotted.at("/b").absolute


@pytest.mark.parametrize(
    "text",
    [
        "wss://h.example/a?b=c",
        "wss://h.example.:8443/",
        "ws://[fe80::1%25eth0]:9/",
        "ws://localhost./",
        "wss://[2001:db8::1]/",
    ],
)
def test_the_whole_url_is_read_as_the_same_again(text: str) -> None:
    url = parse_url(text, allow_insecure=True)
    assert url.whole == text
    assert parse_url(url.whole, allow_insecure=True) == url


def test_the_http_twin() -> None:
    twin = parse_url("wss://api.example:8443/ws?a=b").at("/api/x?y=z")
    assert (str(twin), twin.target) == ("https://api.example:8443/api/x", "/api/x?y=z")
    assert parse_url("ws://localhost/ws").at("/").scheme == "http"
    with pytest.raises(InvalidArgument):
        twin.at("api/x")


def test_an_origin_has_no_path() -> None:
    with pytest.raises(InvalidArgument):
        parse_origin("https://api.example/x")


@pytest.mark.parametrize("text", ["wss://[fe80::1%25eth0]:7/", "wss://[fe80::1%eth0]:7/"])
def test_a_zone_is_dialled_and_told_to_nobody(text: str) -> None:
    url = parse_url(text)
    assert (url.zone, url.host_header, str(url.origin)) == ("eth0", "[fe80::1]:7", "https://[fe80::1]:7")


@given(st.text())
def test_any_text_is_a_url_or_a_typed_refusal(text: str) -> None:
    for candidate in (text, f"wss://{text}", f"wss://h/{text}", f"wss://[{text}]/", f"wss://h:{text}/"):
        try:
            url = parse_url(candidate)
        except InvalidArgument:
            continue
        url.host_header.encode("ascii")
        url.target.encode("ascii")
        assert not set(url.host_header + url.target) & set(" \r\n\t\x00")
