"""Connections on their way in, proxies' words about them, origins, refusals and questions: pure, one by one."""

from __future__ import annotations

import socket
import struct

import pytest
from structlog.testing import capture_logs

from relay.auth.addresses import BadProxyHeader, Source, proxy_header, source
from relay.config.origins import Origins
from relay.config.proxies import Proxies, parse
from relay.websocket import refusals
from relay.websocket.limits import Arrivals, Questions
from relay.websocket.refusals import Refusals

# Arrivals


def test_the_oldest_of_the_fullest_address_is_crowded_out() -> None:
    arrivals: Arrivals[int] = Arrivals(4)
    for number, address in enumerate("abba"):
        assert not arrivals.full
        arrivals.add(number, address)
    assert arrivals.full
    arrivals.add(4, "b")
    assert [arrivals.crowd_out() for _ in range(6)] == [1, 0, 2, 3, 4, None]


def test_an_arrival_that_is_over_no_longer_counts() -> None:
    arrivals: Arrivals[int] = Arrivals(2)
    arrivals.add(1, "a")
    arrivals.add(2, "a")
    arrivals.remove(1)
    arrivals.remove(1)
    arrivals.remove_if(lambda number: number == 2)
    assert (len(arrivals), arrivals.crowd_out()) == (0, None)


# Proxies

PROXIES = Proxies.of("10.0.0.0/8, ::1")


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:54321", "203.0.113.7"),
        ("203.0.113.7:", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:1", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("203.0.113.7:_port", "203.0.113.7"),
    ],
)
def test_an_address_is_read_in_each_form_that_proxies_write(hop: str, address: str) -> None:
    assert source("10.0.0.1", [f"1.1.1.1, {hop}"], [], PROXIES) == Source(address)
    assert str(parse(hop)) == address


@pytest.mark.parametrize(
    "hop", ["unknown", "_hidden", "203.0.113.7:1:2", "300.1.1.1", "203.0.113.7.", "[::1", "x" * 9000]
)
def test_a_hop_that_cannot_be_read_is_a_fault_of_the_proxy(hop: str) -> None:
    assert source("10.0.0.1", [hop], [], PROXIES) == Source("10.0.0.1", hop)
    assert source("10.0.0.1", [f"{hop}, 10.0.0.2"], [], PROXIES) == Source("10.0.0.2", hop)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=203.0.113.7;proto=https;by=10.0.0.9", "203.0.113.7"),
        ('for="203.0.113.7:54321"', "203.0.113.7"),
        ('by=10.0.0.9 ; for="[2001:db8::1]:443" ;host="a,b;c"', "2001:db8::1"),
        ("for=1.1.1.1, for=203.0.113.7, for=10.0.0.2", "203.0.113.7"),
        ('for="\\2\\03.0.113.7"', "203.0.113.7"),
    ],
)
def test_the_standard_header_is_read(value: str, address: str) -> None:
    assert source("10.0.0.1", [], [value], PROXIES) == Source(address)
    assert source("192.0.2.1", [], [value], PROXIES) == Source("192.0.2.1")


@pytest.mark.parametrize("value", ["for", "for=a b", 'for="1.1.1.1', ";", "proto=http", "for=_hidden", "for=unknown"])
def test_a_standard_header_that_tells_no_address_is_a_fault(value: str) -> None:
    address, fault = source("10.0.0.1", [], [value], PROXIES)
    assert address == "10.0.0.1"
    assert fault


def test_two_headers_that_do_not_agree_are_not_believed() -> None:
    """The proxy has written one of them, and the client may have written the other."""
    address, fault = source("10.0.0.1", ["198.51.100.1"], ["for=203.0.113.7"], PROXIES)
    assert (address, "do not agree" in str(fault)) == ("10.0.0.1", True)
    assert source("10.0.0.1", ["203.0.113.7"], ["for=203.0.113.7"], PROXIES) == Source("203.0.113.7")


def test_peers_of_a_unix_socket_are_trusted_if_configured() -> None:
    assert Proxies.of("unix 10.0.0.1").trusts("")
    assert not Proxies.of("10.0.0.1").trusts("")
    assert source("", ["203.0.113.7"], [], Proxies.of("unix")) == Source("203.0.113.7")


V2 = b"\r\n\r\n\0\r\nQUIT\n"
TCP4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 1, 2)
TCP6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") + bytes(16) + struct.pack("!HH", 1, 2)


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2\r\n", "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n", "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ff ff 1 2\r\n", None),
        (V2 + b"\x21\x11\0\x0c" + TCP4, "203.0.113.7"),
        (V2 + b"\x21\x11\0\x0f" + TCP4 + b"\x04\0\0", "203.0.113.7"),
        (V2 + b"\x21\x21\0\x24" + TCP6, "2001:db8::1"),
        (V2 + b"\x20\0\0\0", None),
        (V2 + b"\x21\0\0\0", None),
        (V2 + b"\x21\x31\0\x02ab", None),
    ],
)
def test_both_versions_of_the_proxy_protocol_are_read(header: bytes, address: str | None) -> None:
    assert proxy_header(header + b"GET / HTTP/1.1\r\n") == (len(header), address)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 203.0.113.7 10.0.0.1 1 2",
        b"PROXY " + b"x" * 200 + b"\r\n",
        b"PROXY TCP4 nobody 10.0.0.1 1 2\r\n",
        b"PROXY TCP4\r\n",
        V2,
        V2 + b"\x21\x11\0\x0c" + TCP4[:-1],
        V2 + b"\x21\x11\0\x02ab",
        V2 + b"\x31\x11\0\x0c" + TCP4,
    ],
)
def test_a_proxy_header_that_is_not_whole_is_bad(data: bytes) -> None:
    with pytest.raises(BadProxyHeader):
        proxy_header(data)


@pytest.mark.parametrize("data", [b"", b"P", b"GET / HTTP/1.1\r\n", b"\r\n\r\n", b"POST / HTTP/1.1\r\n"])
def test_an_invalid_proxy_header_is_ignored(data: bytes) -> None:
    assert proxy_header(data) is None


# Origins

ORIGINS = Origins.of(["https://app.example.com:443", "https://*.example.org", "file://", "http://localhost:*"])


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com",
        "HTTPS://App.Example.Com",
        "https://a.example.org",
        "https://a.b.example.org:443",
        "file://",
        "http://localhost:5173",
    ],
)
def test_pages_of_allowed_origins_may_connect(origin: str) -> None:
    assert ORIGINS.allow(origin)


@pytest.mark.parametrize(
    "origin",
    [
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://example.org",
        "https://evil.com/.example.org",
        "https://evil.com:1.example.org",
        "https://a.example.org.evil.com",
        "https://a.example.org@evil.com",
        "null",
        "",
        "*",
        "https://",
        "app.example.com",
        "http://localhost:1:2",
    ],
)
def test_pages_of_other_origins_may_not(origin: str) -> None:
    assert not ORIGINS.allow(origin, "relay.example.com")


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://127.0.0.1:4002", "127.0.0.1:4002", True),
        ("https://board.example.com", "board.example.com", True),
        ("https://board.example.com", "board.example.com:443", True),
        ("http://[::1]:4002", "[::1]:4002", True),
        ("http://BOARD.example.com", "board.EXAMPLE.com:80", True),
        ("http://127.0.0.1:4000", "127.0.0.1:4002", False),
        ("https://board.example.com.evil.com", "board.example.com", False),
        ("https://board.example.co", "board.example.com", False),
        ("https://board.example.com", "*.example.com", False),
        ("null", "null", False),
        ("file://", "", False),
        ("https://board.example.com", "", False),
        ("https://board.example.com", "board.example.com/x", False),
    ],
)
def test_a_page_of_the_host_that_it_connects_to_is_not_foreign(origin: str, host: str, *, allowed: bool) -> None:
    assert Origins().allow(origin, host) is allowed


@pytest.mark.parametrize("text", ["localhost", "https://a/path", "https://", "https://a:b", "https://u@a", "**"])
def test_an_invalid_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Origins.of([text])


# Refusals


def test_refusals_are_counted_and_one_a_second_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the address and the details of the one that is logged, cut, and with how many more there were."""
    now = 100.0
    monkeypatch.setattr(refusals, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now)}))
    with capture_logs() as logged:
        found = Refusals("websocket.refused")
        for number in range(5):
            found.add("foreign origin", f"203.0.113.{number}", origin="x" * 9000)
        found.add("no origin")
        assert found.recent("foreign origin")
        now += 61
        assert not found.recent("foreign origin")
        found.add("foreign origin", "203.0.113.9")
    assert found.counts == {"foreign origin": 6, "no origin": 1}
    assert [(line.get("address"), line.get("more"), len(line.get("origin", ""))) for line in logged] == [
        ("203.0.113.0", None, 200),
        (None, None, 0),
        ("203.0.113.9", 4, 0),
    ]


# Questions


def test_a_question_that_is_asked_again_waits_once() -> None:
    questions: Questions[str, int] = Questions()
    for by in range(100):
        questions.ask("one", "a", by)
    questions.ask("two", "b", 7)
    assert len(questions) == 2
    assert questions.take(10) == [("one", "a", 99), ("two", "b", 7)]
    assert questions.take(10) == []


def test_questions_are_taken_in_turn_and_those_of_nobody_are_not() -> None:
    questions: Questions[str, int] = Questions()
    for client in ("one", "two", "three"):
        for board in ("a", "b"):
            questions.ask(client, board, 0)
    questions.withdraw("one", "a")
    questions.withdraw("one", "c")
    questions.withdraw("four", "a")
    questions.forget("two")
    assert questions.take(2) == [("one", "b", 0), ("three", "a", 0)]
    assert questions.take(2) == [("three", "b", 0)]
    assert len(questions) == 0
