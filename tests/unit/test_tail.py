"""What `relay tail` makes of messages: deliveries, lines, what is wanted, and how it comes back."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

from relay.client import link
from relay.commands.tail import follow as tail
from relay.commands.tail.follow import CursorFile, States
from relay.commands.tail.messages import Delivery, Message, Parts, Reader, TailError
from relay.commands.tail.show import Filter, line
from relay.model import messages as protocol
from relay.text import harmless

REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
AT = datetime(2026, 1, 2, 3, 4, 5, 67_000, UTC)


def raw(value: object) -> Raw:
    return Raw(json.dumps(value, ensure_ascii=False).encode())


def row(**values: object) -> dict[str, Raw]:
    return {name: raw(value) for name, value in values.items()}


def created(task: object = "a", lane: str | None = "todo", **values: object) -> bytes:
    return protocol.task_created(row(id=task, boardId="default", lane=lane, **values)).json


def updated(task: object = "a", **changes: object) -> bytes:
    return protocol.task_updated(raw(task), row(**changes)).json


def moved(task: str, old: str, new: str) -> bytes:
    return protocol.task_moved(raw(task), raw(old), raw(new)).json


def deleted(task: str) -> bytes:
    return protocol.task_deleted(raw(task)).json


def board(**tasks: str) -> bytes:
    rows = [row(id=task, lane=lane) for task, lane in tasks.items()]
    return protocol.board_sync(protocol.board_data(rows)).json


def read(*messages: bytes) -> list[Message]:
    return list(map(Reader().read, messages))


def shown(*messages: bytes) -> list[str]:
    """The lines of messages, without the time."""
    return [line(message, AT).plain.removeprefix("03:04:05.067  ") for message in read(*messages)]


# Deliveries


def test_a_batch_in_parts_is_delivered_with_its_cursor() -> None:
    """No part is shown before the last has come, and then each message as its own JSON."""
    messages = [protocol.task_deleted(raw("x" * protocol.PART_BYTES)), protocol.task_deleted(raw("b"))]
    first, last = protocol.batch("default", "cursor", messages)
    parts = Parts()

    assert parts.take(first.json) is None
    assert parts.take(last.json) == Delivery([message.json for message in messages], "cursor")
    assert parts.take(b'{"type":"batch","boardId":"default","cursor":"c2","data":[]}') == Delivery([], "c2")


def test_a_board_ends_a_batch_that_is_not_whole() -> None:
    """It replaces all, so the parts that came before it must not be shown after it."""
    parts = Parts()
    parts.take(b'{"type":"batch","data":[{"type":"task.deleted","data":{"id":"a"}}]}')
    sync = protocol.resumable_sync("default", "c1", "truncate", protocol.board_data([])).json

    assert parts.take(sync) == Delivery([sync], "c1", "truncate")
    assert parts.take(b'{"type":"batch","cursor":"c2","data":[]}') == Delivery([], "c2")


def test_pongs_are_not_messages_and_errors_end_it() -> None:
    """What answers our own pings is not shown; a board that may not be followed cannot be waited for."""
    assert Parts().take(protocol.PONG.json) is None
    with pytest.raises(TailError, match=r"^the relay refused: not \\u001byours \(not_allowed\)$"):
        Parts().take(protocol.error("not_allowed", "not \x1byours", "default").json)


@pytest.mark.parametrize(
    "text", [b"hello", b"[]", b'{"data":1}', b'{"type":1}', b'{"type":"batch","data":1}', b"\xff"]
)
def test_what_no_relay_sends_is_one_line(text: bytes) -> None:
    """An echo server, say, is not taken for a relay."""
    with pytest.raises(TailError, match="check --url") as failure:
        Parts().take(text)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("data", ["{}", "[]", '{"id":"a"}', '{"lanes":[]}'])
@pytest.mark.parametrize("kind", ["board.sync", "task.created", "task.moved"])
def test_a_message_that_cannot_be_read_is_one_line(kind: str, data: str) -> None:
    """Neither is it shown half, nor with a traceback."""
    with pytest.raises(TailError, match="cannot be read"):
        Reader().read(f'{{"type":"{kind}","data":{data}}}'.encode())


# Lines


def test_lines_tell_type_task_lanes_and_columns() -> None:
    """A deletion and an update show the lane that was shown before; a null of a new task is left out."""
    assert shown(
        board(a="todo", b="todo", c="far away"),
        created("d", "todo", title="Paint it", estimatedHours=4, status=None),
        updated("b", title="Brush", status=None),
        moved("c", "far away", "done"),
        deleted("c"),
        updated("unheard of", title="x"),
    ) == [
        "board.sync    3 tasks  backlog 0  todo 2  in_progress 0  done 0  recovery 0  far away 1",
        'task.created  d  todo  title="Paint it"  estimatedHours=4',
        'task.updated  b  todo  title="Brush"  status=null',
        "task.moved    c  far away → done",
        "task.deleted  c  done",
        'task.updated  unheard of  title="x"',
    ]


def test_a_board_that_was_not_asked_for_says_why() -> None:
    """Its reason ends the line."""
    sync = protocol.resumable_sync("default", "c", "truncate", protocol.board_data([row(id=1, lane=None)])).json
    assert shown(sync) == [
        "board.sync    1 task  backlog 0  todo 0  in_progress 0  done 0  recovery 0  null 1  (truncate)"
    ]


def test_numbers_keep_their_digits_and_long_values_are_cut() -> None:
    """A value is the JSON that came; a number too long for a number of Python's is no trouble."""
    number = b"1234567890.12345678901234567890"
    long = b"9" * 5000
    message = b'{"type":"task.updated","data":{"id":%s,"changes":{"n":%s,"m":%s}}}' % (number, number, long)
    [line] = shown(message)
    assert line == f"task.updated  {number.decode()}  n={number.decode()}  m={'9' * 59}…"


def test_a_type_of_the_future_is_shown() -> None:
    """Rather as it is than not at all."""
    assert shown(b'{"type":"board.renamed","data":{"to":"b"}}') == ['board.renamed  data={"to":"b"}']


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20))
def test_no_text_of_a_task_reaches_the_terminal_as_a_command(text: str) -> None:
    """As id, lane, name or value, and in JSON, which means the same as before."""
    for message in (created(text, text, title=text, **{"x" + text: {"deep": text}}), board(**{text: text})):
        for printed in (*shown(message), harmless(message.decode())):
            assert {unicodedata.category(character) for character in printed}.isdisjoint({"Cc", "Zl", "Zp", "Cs"})
            assert {unicodedata.bidirectional(character) for character in printed}.isdisjoint(REORDERING)
        assert json.loads(harmless(message.decode())) == json.loads(message)


# What is wanted


def wanted(rule: Filter, *messages: bytes) -> list[int]:
    return [number for number, message in enumerate(read(*messages)) if rule.wants(message)]


def test_each_filter_keeps_what_it_names() -> None:
    """A task belongs to both lanes of a move, and one whose lane is not known might belong to any."""
    messages = (
        board(a="todo", b="done"),
        created("c", "todo", title="green paint"),
        moved("b", "done", "recovery"),
        updated("a", title="paint"),
        deleted("b"),
        updated("z", title="who knows"),
    )
    assert wanted(Filter(), *messages) == [0, 1, 2, 3, 4, 5]
    assert wanted(Filter(types=frozenset({"task.moved", "board.sync"})), *messages) == [0, 2]
    assert wanted(Filter(lanes=frozenset({"todo"})), *messages) == [0, 1, 3, 5]
    assert wanted(Filter(lanes=frozenset({"done"})), *messages) == [0, 2, 5]
    assert wanted(Filter(lanes=frozenset({"recovery"})), *messages) == [0, 2, 4, 5]
    assert wanted(Filter(tasks=frozenset({"a", "b"})), *messages) == [0, 2, 3, 4]
    assert wanted(Filter(text="paint"), *messages) == [0, 1, 3]
    assert wanted(Filter(text="recov"), *messages) == [0, 2, 4]
    assert wanted(Filter(text="paint", tasks=frozenset({"a"})), *messages) == [0, 3]


def test_only_the_board_that_was_asked_for_can_be_left_out() -> None:
    """One that comes for a reason replaces all that was shown."""
    later = protocol.resumable_sync("default", "c", "truncate", protocol.board_data([])).json
    assert wanted(Filter(first_board=False), board(), later, deleted("a")) == [1, 2]


# Coming back


def test_pauses_are_random_and_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter: anything from nothing to the limit, which doubles."""

    def longest(_: Any, low: float, high: float) -> float:
        assert low == 0
        return high

    assert len({tail.pause(3) for _ in range(10)}) > 1
    monkeypatch.setattr("random.Random.uniform", longest)
    assert [tail.pause(attempt) for attempt in (0, 1, 2, 5, 6, 7, 10_000)] == [0.5, 1, 2, 16, 30, 30, 30]


def test_each_state_is_shown_once() -> None:
    """Attempts that fail as the last one did are not worth a line; another reason is."""
    lines: list[str] = []
    states = States(lines.append)
    for state, why in (
        ("connecting", "ws://a"),
        ("offline", "refused"),
        ("connecting", "ws://a"),
        ("offline", "refused"),
        ("offline", "HTTP 503"),
        ("connecting", "ws://a"),
        ("catching up", ""),
        ("live", ""),
        ("live", ""),
    ):
        states(state, why)
    assert [line.removeprefix("relay tail: ") for line in lines] == [
        "connecting: ws://a",
        "offline: refused",
        "offline: HTTP 503",
        "catching up",
        "live",
    ]


@pytest.mark.parametrize(
    ("code", "hopeless"), [(1001, False), (1002, True), (1008, True), (1013, False), (4001, False), (4003, True)]
)
def test_close_codes_say_whether_to_come_back(code: int, hopeless: bool) -> None:
    """As the table of the clients' guide does."""
    reason = tail.hopeless(ConnectionClosedError(Close(code, "why"), None))
    assert (reason is not None) == hopeless


@pytest.mark.parametrize(
    ("status", "asked", "hopeless", "pause"),
    [
        (401, None, True, 0),
        (403, None, True, 0),
        (404, None, True, 0),
        (429, "7", False, 7),
        (503, "10000000", False, 300),
        (503, "Thu, 01 Jan 1970 00:00:00 GMT", False, 0),
        (502, None, False, 0),
    ],
)
def test_answers_say_whether_and_when_to_come_back(
    status: int, asked: str | None, hopeless: bool, pause: int
) -> None:
    """A refusal cannot be waited for, a limit can, for as long as the relay asks."""
    headers = Headers({"Retry-After": asked} if asked else {})
    refused = InvalidStatus(Response(status, "", headers))
    assert (tail.hopeless(refused) is not None) == hopeless
    assert link.retry_after(refused) == pause


def test_addresses_are_shown_without_secrets() -> None:
    """Neither a password nor a token in the query is repeated."""
    assert link.without_secrets("wss://me:pw@relay.example.com:443/ws?token=t#f") == "wss://relay.example.com:443/ws"


@pytest.mark.parametrize("url", ["localhost:4002", "http://localhost:4002", "ws://", "ws://host:port", "ws://[::1"])
def test_an_address_of_nothing_is_one_line(url: str) -> None:
    """Waiting would not make it one."""
    with pytest.raises(TailError, match="expected one like ws://localhost:4002"):
        tail.check_url(url)


# Tokens and cursors


def test_the_token_is_read_again_each_time(tmp_path: Path) -> None:
    """A fresh one in the file is taken at the next connection; the file wins over the environment."""
    file = tmp_path / "token"
    file.write_text("one\n")
    token = tail.token_from(file, "other")
    assert token() == "one"
    file.write_text("two")
    assert token() == "two"
    assert tail.token_from(None, "other")() == "other"
    assert tail.token_from(None, None)() is None


@pytest.mark.parametrize("text", ["", "two words", "two\nlines", "tök"])
def test_what_can_be_no_token_is_an_error_at_once(text: str, tmp_path: Path) -> None:
    """Without repeating it."""
    (tmp_path / "token").write_text(text)
    with pytest.raises(TailError, match=r"holds no token: expected one, in one line, without spaces$"):
        tail.token_from(tmp_path / "token", None)


def test_a_cursor_file_is_replaced_whole(tmp_path: Path) -> None:
    """Also where a link leads; what cannot be written is one line, and leaves nothing behind."""
    (tmp_path / "link").symlink_to(tmp_path / "cursor")
    file = CursorFile(tmp_path / "link")
    assert file.load() is None
    file.save("one")
    file.save("two")
    assert CursorFile(tmp_path / "cursor").load() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cursor", "link"]
    with pytest.raises(TailError, match="choose another --cursor-file"):
        CursorFile(tmp_path / "no" / "cursor").save("one")
