"""The log under a flood, on a disk that is full, before a reader that stalls, and with what strangers write in it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest
import structlog

from relay.logs import log as logs
from relay.logs.log import BURST, LINES_A_SECOND, Flood
from relay.logs.sink import WAITING_BYTES, Sink


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


def test_flood_of_one_event_is_cut_and_counted_afterwards(clock: Clock) -> None:
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


# Where lines go


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a pipe."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def sink(descriptor: int) -> Sink:
    return Sink(descriptor, lambda count: f"{count} dropped\n")


def test_a_reader_that_stalls_holds_up_nobody(pipe: tuple[int, int]) -> None:
    """So much waits, and the rest is counted; when it reads again, it has what waited, and how much is missing."""
    reader, writer = pipe
    found = sink(writer)
    line = "x" * 999 + "\n"
    for _ in range(1300):
        found.write(line)
    in_the_pipe = 1300 - found.dropped - WAITING_BYTES // 1000
    assert 0 <= in_the_pipe <= 100
    assert found.dropped > 100
    kept, dropped = 1300 - found.dropped, found.dropped
    text, missing = b"", 0
    # The thread may begin only after lines were dropped, and then says so more than once.
    while text.count(line.encode()) < kept or missing < dropped:
        text += os.read(reader, 65536)
        missing = sum(map(int, re.findall(rb"(\d+) dropped\n", text)))
    assert missing == dropped
    assert re.sub(rb"\d+ dropped\n", b"", text) == line.encode() * kept
    found.close()


def test_a_full_disk_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    """They are counted; when there is room again, the log goes on and says how many are missing."""
    reader, writer = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    found = sink(full)
    found.write("one\n")
    found.write("two\n")
    found.close()
    assert found.dropped == 2
    os.dup2(writer, full)
    again = sink(full)
    again.dropped = 2
    again.write("three\n")
    again.close()
    assert os.read(reader, 99) == b"three\n2 dropped\n"
    os.close(full)


def test_a_reader_that_has_left_costs_only_lines() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    found = sink(writer)
    found.write("one\n")
    found.close()
    assert found.dropped == 1
    os.close(writer)


def test_a_line_that_was_cut_is_ended_before_the_next(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the midst of a line leaves its beginning there."""
    reader, writer = pipe
    real, calls = os.write, iter([3, None])

    def write(descriptor: int, data: bytes) -> int:
        room = next(calls, len(data))
        if room is None:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:room])

    monkeypatch.setattr("relay.logs.sink.os.write", write)
    found = sink(writer)
    found.write("first\n")
    found.write("second\n")
    found.close()
    assert os.read(reader, 99) == b"fir\nsecond\n1 dropped\n"


def test_a_descriptor_that_does_not_wait_is_waited_for(pipe: tuple[int, int]) -> None:
    """Whatever shares the terminal or the pipe may have made it so."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    found = sink(writer)
    for _ in range(200):
        found.write("x" * 999 + "\n")
    text = b""
    while len(text) < 200_000:
        text += os.read(reader, 65536)
    found.close()
    assert found.dropped == 0


HOSTILE = "\x1b]0;PWNED\x07\x1b[2J\x9b2J\r\n\u202e"


def test_control_characters_never_reach_a_terminal() -> None:
    """Neither in a value nor in a name, nor in what was raised; colours are ours."""
    line = {"event": HOSTILE, "level": "info", "timestamp": "now", "board": HOSTILE, HOSTILE: 1, "exception": HOSTILE}
    shown = logs._for_terminals()(None, "", line)  # noqa: SLF001
    assert "PWNED" in str(shown)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", re.sub(r"\x1b\[[0-9;]*m", "", str(shown)))


def test_json_for_machines_means_what_it_did() -> None:
    shown = logs._for_machines(None, "", {"event": HOSTILE + "\x7f"})  # noqa: SLF001
    assert shown.isprintable()
    assert json.loads(shown) == {"event": HOSTILE + "\x7f"}
