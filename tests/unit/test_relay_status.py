"""What `relay status` makes of a relay's answers: figures, rates, and a screen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from relay.commands import status as overview
from relay.commands.status import Metrics, Overview, Sample, figures_as_json, quantile, screen

HEALTH = {
    "status": "healthy",
    "websocket": {"running": True, "connections": 3, "port": 4002},
    "database": {
        "connected": True,
        "canarySeconds": 0.003,
        "lagSeconds": 0.4,
        "queueUsage": 0.25,
        "journal": {
            "rows": 12,
            "bytes": 65536,
            "keepBytes": 536870912,
            "stopBytes": 1073741824,
            "ageSeconds": 312,
            "overdueSeconds": 0,
            "paused": True,
        },
    },
    "workers": 2,
}


def page(messages: dict[str, int], latencies: tuple[float, ...] = (), *, sent: int = 0) -> Metrics:
    """A page of metrics as a relay makes it."""
    registry = CollectorRegistry()
    counter = Counter("relay_messages_sent", "", ["type"], registry=registry)
    for kind, count in messages.items():
        counter.labels(kind).inc(count)
    Counter("relay_sent_bytes", "", registry=registry).inc(sent)
    Counter("relay_refused", "", ["reason"], registry=registry)
    Gauge("relay_build_info", "", ["version"], registry=registry).labels("1.2.3").set(1)
    Gauge("process_start_time_seconds", "", registry=registry).set(1000)
    buckets = (0.001, 0.01, 0.1)
    histogram = Histogram("relay_commit_to_socket_seconds", "", registry=registry, buckets=buckets)
    for latency in latencies:
        histogram.observe(latency)
    return Metrics(generate_latest(registry).decode())


def sample(at: float, *arguments: Any, **options: Any) -> Sample:
    return Sample(at, HEALTH, {"ready": True}, page(*arguments, **options))


def shown(figures: Overview) -> list[str]:
    return screen(figures, "http://localhost:4001", "12:00:00", colours=False)


def row(label: str, figures: Overview) -> str:
    [line] = [line for line in shown(figures) if line.startswith(label)]
    return line.removeprefix(label).strip()


def test_a_relay_that_tells_little_is_shown_with_dashes() -> None:
    """An older one has no metrics but these, no /ready, and the guide's health: nothing fails, nothing is guessed."""
    health = {"status": "healthy", "websocket": {"running": True, "connections": 3, "port": 4002}}
    figures = overview.overview(Sample(0, health))

    assert figures.exit_code == overview.HEALTHY
    assert row("status", figures) == "healthy"
    assert row("clients", figures) == "connections 3 of -, subscriptions -"
    assert row("messages", figures) == "-"
    assert row("latency", figures) == "p50 -, p99 - from commit to socket"
    assert row("journal", figures) == "rows -, -, pruned from -, stops at -"
    assert row("version", figures) == "-, up -"
    told = {name: value for name, value in json.loads(figures_as_json(figures)).items() if value is not None}
    assert told == {"healthy": True, "connections": 3, "warnings": []}


@pytest.mark.parametrize("part", [None, 7, "text", [], {"journal": 1}, {"journal": {"rows": "many"}}])
def test_health_of_another_shape_fails_nothing(part: object) -> None:
    """What cannot be understood is not known."""
    figures = overview.overview(Sample(0, {"status": "odd", "websocket": part, "database": part, "problem": part}))
    assert figures.exit_code == overview.UNHEALTHY
    assert row("journal", figures).startswith("rows -")


def test_what_the_metrics_leave_out_health_tells() -> None:
    """The journal and the feed's lag stand in both."""
    figures = overview.overview(sample(1000 + 90_061, {}))
    assert row("version", figures) == "1.2.3, up 1 d 1 h"
    assert row("workers", figures) == "2 of -"
    assert row("feed", figures) == "-, lag 400.0 ms, reconnects -"
    assert row("journal", figures) == "rows 12, 64 kB, pruned from 512 MB, stops at 1.0 GB, PAUSED"
    assert "oldest 5 min 12 s, overdue 0 s" in "\n".join(shown(figures))
    assert row("notify queue", figures) == "25.0% used"
    assert row("refused", figures) == "none"


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ({"connected": True, "entry": 1234}, "connected, last entry 1,234"),
        ({"connected": True, "entry": 7, "active": True}, "connected, last entry 7, publishes"),
        ({"connected": False, "active": False}, "not connected, last entry -, stands by"),
    ],
)
def test_a_stream_is_shown_where_there_is_one(stream: dict[str, object], expected: str) -> None:
    """An edge's and a publisher's; a relay on the database has no such line."""
    assert row("stream", overview.overview(Sample(0, HEALTH | {"stream": stream}))) == expected
    assert not [line for line in shown(overview.overview(Sample(0, HEALTH))) if line.startswith("stream")]


def test_two_samples_give_rates() -> None:
    """By type, one that is new began at nothing; the first sample has none."""
    before = sample(1000, {"task.created": 10}, sent=1000)
    now = sample(1004, {"task.created": 30, "task.moved": 1_234}, sent=1000 + 4 * 2048)
    figures = overview.overview(now, before)

    assert row("messages", figures) == "task.created            30, 5.0 a second"
    assert "task.moved           1,234, 308.5 a second" in "\n".join(shown(figures))
    assert row("bytes", figures) == "9.0 kB, 2.0 kB a second"
    assert row("messages", overview.overview(before)) == "task.created            10"


def test_a_relay_that_began_anew_has_no_rates() -> None:
    """A count that went back says nothing about the time between; the latency then is that since the start."""
    before = sample(1000, {"task.created": 10}, (0.05, 0.05), sent=1000)
    figures = overview.overview(sample(1004, {"task.created": 2}, (0.0005,), sent=10), before)

    assert figures.message_rates == {}
    assert figures.sent_rate is None
    assert figures.commit_to_socket_p99 == pytest.approx(0.00099)


def test_the_latency_is_that_of_the_time_between() -> None:
    """And that since the start if nothing happened."""
    before = sample(1000, {}, (0.0005,) * 1000)
    after = sample(1004, {}, (0.0005,) * 1000 + (0.05,))
    assert overview.overview(after, before).commit_to_socket_p50 == pytest.approx(0.055)
    assert overview.overview(after, after).commit_to_socket_p50 == pytest.approx(0.0005, rel=0.01)


def test_quantiles_are_those_of_prometheus() -> None:
    """Evenly within a bucket, the last bound for all beyond it, and none of nothing."""
    inf = float("inf")
    buckets = {1.0: 10.0, 2.0: 30.0, 4.0: 40.0, inf: 40.0}
    assert quantile(buckets, 0.5) == 1.5
    assert quantile(buckets, 0.99) == pytest.approx(3.92)
    assert quantile(buckets, 1) == 4
    assert quantile({1.0: 0.0, 2.0: 0.0, inf: 5.0}, 0.5) == 2
    assert quantile({1.0: 0.0, inf: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_the_exit_code_is_that_of_health_and_readiness() -> None:
    """One that is healthy and not ready should get no clients; the problem is the one that was told."""
    healthy = overview.overview(sample(1000, {}))
    assert healthy.exit_code == overview.HEALTHY
    unready = overview.overview(Sample(0, HEALTH, {"ready": False, "problem": "no canary yet"}))
    assert unready.exit_code == overview.UNHEALTHY
    assert row("status", unready) == "healthy, not ready"
    assert row("problem", unready) == "no canary yet"
    assert overview.overview(Sample(0, HEALTH | {"status": "unhealthy"})).exit_code == overview.UNHEALTHY


def test_problems_and_warnings_are_one_line_each_and_harmless() -> None:
    """A problem may repeat what a database said."""
    health = HEALTH | {"status": "unhealthy", "problem": "no\nway \x1b[2J", "warnings": ["full", "and\told"]}
    lines = shown(overview.overview(Sample(0, health)))
    assert lines[2:6] == [
        "status        unhealthy",
        r"problem       no way \u001b[2J",
        "warning       full",
        "warning       and old",
    ]


def test_colours_change_nothing_but_colours() -> None:
    """Green is well, red is not."""
    figures = overview.overview(sample(1000, {}))
    coloured = "\n".join(screen(figures, "u", "t", colours=True))
    assert "\x1b[32m" in coloured
    assert "\x1b[31m" in "\n".join(screen(replace(figures, healthy=False), "u", "t", colours=True))
    assert "\x1b" not in "\n".join(shown(figures))


@pytest.mark.parametrize(
    "url", ["localhost:4001", "ws://localhost:4001", "http://", "http://host:port", "http://[::1"]
)
def test_an_address_of_nothing_is_one_line(url: str) -> None:
    """Nobody is asked."""
    with pytest.raises(overview.AddressError, match="expected one like http://localhost:4001"):
        overview.check_url(url)
