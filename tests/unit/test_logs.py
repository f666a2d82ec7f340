"""The log under a flood."""

from __future__ import annotations

import pytest
import structlog

from relay import logs
from relay.logs import BURST, LINES_A_SECOND, Flood


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have the log go by a clock that stands."""
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    return clock


def passed(flood: Flood, event: str, count: int, **fields: object) -> list[structlog.typing.EventDict]:
    """Log so often, and return what got through."""
    lines = []
    for _ in range(count):
        try:
            lines.append(flood(None, "info", {"event": event, **fields}))
        except structlog.DropEvent:
            continue
    return lines


def test_flood_of_one_event_is_cut_and_told_afterwards(clock: Clock) -> None:
    """A burst gets through, then so many a second; the next line says how many did not, once."""
    flood = Flood()
    assert len(passed(flood, "websocket.close", BURST + 70)) == BURST
    assert flood.suppressed == 70

    clock.now += 1.0
    lines = passed(flood, "websocket.close", LINES_A_SECOND + 5)
    assert len(lines) == LINES_A_SECOND
    assert lines[0] == {"event": "websocket.close", "suppressed": 70}
    assert lines[1] == {"event": "websocket.close"}
    assert flood.suppressed == 75


def test_flood_of_one_event_hides_no_other(clock: Clock) -> None:  # noqa: ARG001  # it stands
    """What an operator must see is counted by itself."""
    flood = Flood()
    passed(flood, "websocket.broadcast", 2 * BURST)
    assert passed(flood, "feed.problem", 1, problem="away") == [{"event": "feed.problem", "problem": "away"}]


def test_lines_of_a_library_are_counted_together(clock: Clock) -> None:  # noqa: ARG001  # it stands
    """Their texts differ without end, and each would have an allowance of its own."""
    flood = Flood()
    lines = [line for number in range(2 * BURST) for line in passed(flood, f"text {number}", 1, logger="asyncio")]
    assert len(lines) == BURST
