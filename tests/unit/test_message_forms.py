"""What clients may say and what they are answered; what the server says, byte for byte."""

from __future__ import annotations

import contextlib
import itertools
import tracemalloc

import msgspec
import pytest

from relay.model import messages as protocol
from relay.model.messages import BadMessage, Row


def task(image: str) -> Row:
    return msgspec.json.decode(image, type=dict[str, msgspec.Raw])


def code(text: str) -> str:
    """Return the code with which a message is refused."""
    with pytest.raises(BadMessage) as caught:
        protocol.parse(text)
    return caught.value.code


def complaint(text: str) -> str:
    with pytest.raises(BadMessage) as caught:
        protocol.parse(text)
    return str(caught.value)


# What clients say


@pytest.mark.parametrize(
    "board", ["default", "", "日本語 🙂", "a'b\"c\\", "x" * protocol.MAX_BOARD_CHARACTERS, "\u0001"]
)
def test_a_board_of_any_name_can_be_subscribed(board: str) -> None:
    text = msgspec.json.encode({"type": "subscribe", "boardId": board}).decode()
    message = protocol.parse(text)
    assert isinstance(message, protocol.Subscribe)
    assert message.board_id == board


def test_a_board_can_be_unsubscribed() -> None:
    message = protocol.parse('{"boardId":"default","type":"unsubscribe"}')
    assert isinstance(message, protocol.Unsubscribe)
    assert message.board_id == "default"


def test_a_ping_is_understood() -> None:
    assert protocol.parse(' {"type": "ping"}\n') == protocol.Ping(type="ping")


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"subscribe","boardId":"default","since":null,"board_id":7}',
        '{"type":"unsubscribe","boardId":"default","why":["bored"]}',
        '{"type":"ping","boardId":7}',
    ],
)
def test_unknown_keys_are_left_alone(text: str) -> None:
    assert protocol.parse(text).model_dump(by_alias=True, exclude_unset=True).keys() <= {"type", "boardId"}


@pytest.mark.parametrize("cursor", ["null", '"x"', "7", "[{}]"])
def test_a_cursor_of_any_kind_asks_for_a_resumable_subscription(cursor: str) -> None:
    message = protocol.parse(f'{{"type":"subscribe","boardId":"a","cursor":{cursor}}}')
    assert isinstance(message, protocol.Subscribe)
    assert message.resumable
    assert message.cursor == msgspec.json.decode(cursor)


def test_without_a_cursor_a_subscription_is_plain() -> None:
    message = protocol.parse('{"type":"subscribe","boardId":"a"}')
    assert isinstance(message, protocol.Subscribe)
    assert not message.resumable


def test_a_large_batch_comes_in_parts_and_the_last_has_the_cursor() -> None:
    messages = [protocol.Message("task.created", b'{"id":%d,"x":"%s"}' % (i, b"x" * 1000)) for i in range(1000)]
    parts = [msgspec.json.decode(part.json) for part in protocol.batch("a", "c", messages)]

    assert len(parts) == 4
    assert ["cursor" in part for part in parts] == [False, False, False, True]
    assert [message["id"] for part in parts for message in part["data"]] == list(range(1000))
    assert max(len(part.json) for part in protocol.batch("a", "c", messages)) < 300_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "hello",
        "{",
        '{"type":"ping"',
        '{"type":"ping"}}',
        '{"type":"ping"} {"type":"ping"}',
        "{'type':'ping'}",
        '{"type":"ping",}',
        '\ufeff{"type":"ping"}',
        '{"type":"subscribe","boardId":"\\ud800"}',
        '{"type":"subscribe","boardId":"a\nb"}',
        "[" * 100_000,
    ],
)
def test_invalid_json_is_refused(text: str) -> None:
    assert code(text) == "invalid_json"


def test_a_message_of_a_mebibyte_is_read_in_little_more_memory_than_its_text_takes() -> None:
    """A list of half a million numbers as `lanes` took six seconds and half a gigabyte: an error for each number."""
    subscribe = '{"type":"subscribe","boardId":"a","cursor":'
    starts = [subscribe + f'null,"{key}":' for key in ("lanes", "columns", "tasks")]
    starts += [subscribe, '{"type":"ping","x":', '{"boardId":', '{"type":']
    tracemalloc.start()
    try:
        for start, one in itertools.product(starts, ("1", "[]", "{}", '"a"')):
            text = start + "[" + f"{one}," * ((protocol.MAX_MESSAGE_BYTES - 80) // (len(one) + 1)) + one + "]}"
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            with contextlib.suppress(BadMessage):
                protocol.parse(text)
            assert tracemalloc.get_traced_memory()[1] - before < 2 * protocol.MAX_MESSAGE_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["null", "1", "true", '"ping"', "[]", '[{"type":"ping"}]', "{}", '{"boardId":"b"}'])
def test_json_that_is_not_an_object_with_a_type_is_refused(text: str) -> None:
    assert code(text) == "invalid_message"


@pytest.mark.parametrize("kind", ['"publish"', '"Ping"', '"ping "', '""', "7", '["ping"]', '{"ping":1}'])
def test_an_unknown_type_is_refused(kind: str) -> None:
    assert code(f'{{"type":{kind},"boardId":"default"}}') == "unknown_type"


@pytest.mark.parametrize("kind", ["subscribe", "unsubscribe"])
@pytest.mark.parametrize(
    "rest",
    ["", ',"board_id":"default"', ',"boardid":"default"']
    + [f',"boardId":{value}' for value in ("null", "7", "1.5", "true", "[]", '["default"]', "{}", '"a\\u0000b"')],
)
def test_an_impossible_board_id_is_refused(kind: str, rest: str) -> None:
    assert code(f'{{"type":"{kind}"{rest}}}') == "invalid_board_id"


@pytest.mark.parametrize(
    ("value", "found"),
    [("null", "null"), ("true", "boolean"), ("7", "number"), ("1.5", "number"), ("[]", "array"), ("{}", "object")],
)
def test_the_error_for_a_wrong_board_id_names_its_json_type(value: str, found: str) -> None:
    text = f'{{"type":"subscribe","boardId":{value}}}'
    assert complaint(text) == f"boardId is of type {found}: expected a string"


def test_a_missing_board_id_is_an_error() -> None:
    assert complaint('{"type":"subscribe"}') == "boardId is missing: expected a string"


def test_the_error_for_an_unknown_type_says_what_was_found_and_what_is_known() -> None:
    assert (
        complaint('{"type":"publish"}')
        == "type 'publish' is unknown: expected subscribe, unsubscribe, includes, ping or authenticate"
    )


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        f'{{"type":"{"x" * 100_000}"}}',
        f'{{"type":"subscribe","boardId":["{"x" * 100_000}"]}}',
        f'["{"x" * 100_000}"]',
    ],
)
def test_no_answer_repeats_a_long_message(text: str) -> None:
    assert len(complaint(text)) < 200


# What the server says


def test_an_error_has_its_code_and_its_text() -> None:
    assert protocol.error("invalid_json", 'not "JSON"').json == (
        b'{"type":"error","data":{"code":"invalid_json","message":"not \\"JSON\\""}}'
    )


def test_a_pong_has_nothing_but_its_type() -> None:
    assert protocol.PONG.json == b'{"type":"pong"}'


def test_a_message_knows_its_type() -> None:
    assert [
        message.type
        for message in (
            protocol.PONG,
            protocol.error("invalid_json", ""),
            protocol.task_created(task('{"id":1}')),
            protocol.task_deleted(msgspec.Raw(b"1")),
            protocol.board_sync(protocol.board_data([])),
        )
    ] == ["pong", "error", "task.created", "task.deleted", "board.sync"]


def test_values_are_passed_on_as_they_were_written() -> None:
    image = '{"id":12345678901234567890.123,"a":1.50,"b":1e400,"c":"\\u00e9","d":{"x": [1,  2]}}'
    assert protocol.task_created(task(image)).json == b'{"type":"task.created","data":' + image.encode() + b"}"


def test_an_update_names_the_task_and_its_changes() -> None:
    update = protocol.task_updated(msgspec.Raw(b"7"), task('{"hours":1.50}'))
    assert update.json == b'{"type":"task.updated","data":{"id":7,"changes":{"hours":1.50}}}'


def test_a_move_names_the_task_and_both_lanes() -> None:
    move = protocol.task_moved(msgspec.Raw(b"7"), msgspec.Raw(b'"todo"'), msgspec.Raw(b"null"))
    assert move.json == b'{"type":"task.moved","data":{"id":7,"fromLane":"todo","toLane":null}}'


def test_a_deletion_names_the_task() -> None:
    assert protocol.task_deleted(msgspec.Raw(b'"x"')).json == b'{"type":"task.deleted","data":{"id":"x"}}'


def test_an_empty_board_has_the_guides_lanes_in_its_order() -> None:
    assert protocol.board_sync(protocol.board_data([])).json == (
        b'{"type":"board.sync","data":{"lanes":{"backlog":[],"todo":[],"in_progress":[],"done":[],"recovery":[]}}}'
    )


def lanes(*images: str) -> dict[str, list[dict[str, object]]]:
    """Return what a board.sync of these tasks shows, in its order."""
    data = msgspec.json.decode(protocol.board_sync(protocol.board_data([task(image) for image in images])).json)[
        "data"
    ]
    assert data.keys() == {"lanes"}
    found: dict[str, list[dict[str, object]]] = data["lanes"]
    return found


def test_other_lanes_follow_the_guides_in_the_order_they_are_found() -> None:
    found = lanes('{"id":1,"lane":"zoo"}', '{"id":2,"lane":"done"}', '{"id":3,"lane":"ark"}', '{"id":4,"lane":"zoo"}')
    assert list(found) == ["backlog", "todo", "in_progress", "done", "recovery", "zoo", "ark"]


def test_the_tasks_of_a_lane_are_whole_and_in_the_order_given() -> None:
    found = lanes('{"id":2,"lane":"done"}', '{"id":9,"lane":"todo"}', '{"id":1,"lane":"done","hours":2}')
    assert found["done"] == [{"id": 2, "lane": "done"}, {"id": 1, "lane": "done", "hours": 2}]


@pytest.mark.parametrize(
    ("lane", "name"),
    [
        ("null", "null"),
        ("7", "7"),
        ("1.50", "1.50"),
        ('"in review"', "in review"),
        ('"\\u00e9\\""', 'é"'),
        ('""', ""),
    ],
)
def test_a_lane_is_listed_as_its_text_or_its_json(lane: str, name: str) -> None:
    assert list(lanes(f'{{"id":1,"lane":{lane}}}'))[5:] == [name]
