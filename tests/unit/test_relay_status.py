"""What `relay status` makes of a relay's answers: rates, quantiles, and a screen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.commands import status
from relay.commands.status import HEALTHY, UNHEALTHY, Sample, as_json, latency, quantile, rates, screen
from relay.model.status import (
    LATENCY_BUCKETS,
    Counts,
    Database,
    Histogram,
    Journal,
    Process,
    Status,
    StreamStatus,
)

DATABASE = Database(
    journal=Journal(
        rows=12,
        bytes=65536,
        age_seconds=312,
        overdue_seconds=0,
        keep_bytes=512 * 1024**2,
        stop_bytes=1024**3,
        paused=True,
    ),
    queue_usage=0.25,
    probe_seconds=0.003,
    lag_seconds=0.4,
)


def sample(at: float = 1000, **figures: Any) -> Sample:
    return Sample(at, Status(running=True, port=4002, version="1.2.3", **figures))


def counted(at: float, seconds: tuple[float, ...] = (), **counts: Any) -> Sample:
    histogram = Histogram()
    for each in seconds:
        histogram = histogram.observe(each)
    return sample(at, counts=Counts(**counts, commit_to_socket=histogram))


def shown(now: Sample, before: Sample | None = None) -> list[str]:
    return [line.plain for line in screen(now, before, "http://localhost:4001")]


def row(label: str, now: Sample, before: Sample | None = None) -> str:
    [line] = [line for line in shown(now, before) if line.startswith(label)]
    return line.removeprefix(label).strip()


def test_the_screen_shows_all_that_the_relay_tells() -> None:
    now = sample(
        1000 + 90_061,
        connections=3,
        max_connections=100,
        subscriptions=4,
        lag_seconds=0.4,
        feed_up=True,
        database=DATABASE,
        workers=2,
        workers_configured=4,
        process=Process(started=1000, resident_bytes=76 * 1024**2, open_files=16, max_files=20_000),
        counts=Counts(notifications={"received": 13, "skipped": 2}),
    )

    assert row("version", now) == "1.2.3, up 1 d 1 h"
    assert row("workers", now) == "2 of 4"
    assert row("process", now) == "memory 76 MB, open files 16 of 20,000"
    assert row("clients", now) == "connections 3 of 100, subscriptions 4"
    assert row("feed", now) == "up, lag 400.0 ms, reconnects 0"
    assert row("notifications", now) == "received 13, skipped 2"
    assert row("journal", now) == "rows 12, 64 kB, pruned from 512 MB, stops at 1.0 GB, PAUSED"
    assert "oldest 5 min 12 s, overdue 0 s" in "\n".join(shown(now))
    assert row("notify queue", now) == "25.0% used"
    assert row("refused", now) == "none"
    assert row("latency", now) == "p50 -, p99 - from commit to socket"


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (StreamStatus(connected=True, entry=1234), "connected, last entry 1,234"),
        (StreamStatus(connected=True, entry=7, active=True), "connected, last entry 7, publishes"),
        (StreamStatus(connected=False, active=False), "not connected, last entry -, stands by"),
    ],
)
def test_a_stream_is_shown_where_there_is_one(stream: StreamStatus, expected: str) -> None:
    assert row("stream", sample(stream=stream)) == expected
    assert not [line for line in shown(sample()) if line.startswith("stream")]


def test_two_samples_give_rates_and_a_new_type_began_at_nothing() -> None:
    before = counted(1000, messages={"task.created": 10}, bytes=1000)
    now = counted(1004, messages={"task.created": 30, "task.moved": 1_234}, bytes=1000 + 4 * 2048)

    assert row("messages", now, before) == "task.created            30, 5.0 a second"
    assert "task.moved           1,234, 308.5 a second" in "\n".join(shown(now, before))
    assert row("bytes", now, before) == "9.0 kB, 2.0 kB a second"
    assert row("messages", before) == "task.created            10"


def test_a_relay_that_began_again_has_no_rates() -> None:
    before = counted(1000, (0.05, 0.05), messages={"task.created": 10}, bytes=1000)
    now = counted(1004, (0.0005,), messages={"task.created": 2}, bytes=10)

    assert rates(now, before).messages == {}
    assert rates(now, before).bytes is None
    assert quantile(latency(now, before), 0.99) == pytest.approx(0.00099)


def test_the_latency_is_that_of_the_time_between_or_since_the_start_if_nothing_happened() -> None:
    before = counted(1000, (0.0005,) * 1000)
    after = counted(1004, (0.0005,) * 1000 + (0.05,))

    assert quantile(latency(after, before), 0.5) == pytest.approx(0.0375)
    assert quantile(latency(after, after), 0.5) == pytest.approx(0.0005, rel=0.01)


def test_quantiles_are_those_of_prometheus() -> None:
    counts = [0] * (len(LATENCY_BUCKETS) + 1)
    counts[0], counts[1], counts[3] = 10, 20, 10
    histogram = Histogram(counts=tuple(counts))

    assert quantile(histogram, 0.5) == pytest.approx(0.00175)
    assert quantile(histogram, 1) == LATENCY_BUCKETS[3]
    assert quantile(Histogram().observe(99), 0.5) == LATENCY_BUCKETS[-1]
    assert quantile(Histogram(), 0.5) is None


def test_the_exit_code_is_that_of_health_and_readiness() -> None:
    unready = sample(unready="no probe yet")

    assert (sample().exit_code, row("status", sample())) == (HEALTHY, "healthy, ready")
    assert (unready.exit_code, row("status", unready)) == (UNHEALTHY, "healthy, not ready")
    assert row("problem", unready) == "no probe yet"
    assert sample(problem="away").exit_code == UNHEALTHY


def test_problems_and_warnings_are_one_line_each_and_harmless() -> None:
    lines = shown(sample(problem="no\nway \x1b[2J", unready="no", crowded=True))

    assert lines[2] == "status        unhealthy, not ready"
    assert lines[3] == r"problem       no way \u001b[2J"
    assert lines[4].startswith("warning       strangers hold connections to WS_PORT")


def test_json_has_what_the_relay_answered_and_the_rates() -> None:
    before, now = counted(1000, messages={"task.created": 1}), counted(1002, messages={"task.created": 5})
    document = json.loads(as_json(now, before))

    assert "\n" not in as_json(now, before)
    assert (document["ready"], document["maxConnections"], document["problem"]) == (True, 0, None)
    assert document["counts"]["messages"] == {"task.created": 5}
    assert document["rates"]["messages"] == {"task.created": 2.0}
    assert json.loads(as_json(now, None))["rates"] is None


@pytest.mark.parametrize(
    "url", ["localhost:4001", "ws://localhost:4001", "http://", "http://host:port", "http://[::1"]
)
def test_an_address_of_nothing_is_one_line(url: str) -> None:
    with pytest.raises(status.AddressError, match="expected one like http://localhost:4001"):
        status.check_url(url)
