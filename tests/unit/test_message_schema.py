"""The contract for machines: that it is complete, and that what is checked in is what `relay schema` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema_rs import Draft202012Validator, ValidationError

from relay.commands.cli import cli
from relay.model import messages as protocol
from relay.model import schema as contract
from tests.contract import KINDS, checked

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"
DEFINITIONS: dict[str, Any] = contract.json_schema()["$defs"]
SYNC = {"type": "board.sync", "data": {"lanes": {lane: [] for lane in protocol.LANES}}}
RESUMABLE = SYNC | {"boardId": "b", "cursor": "c"}
TASK = {"id": 1, "boardId": "b", "lane": None}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "messages.schema.json"),
        (["--format", "json-schema"], "messages.schema.json"),
        (["--format", "asyncapi"], "asyncapi.json"),
    ],
)
def test_what_is_checked_in_is_what_is_printed(arguments: list[str], name: str) -> None:
    """A change of a message needs `relay schema` run again, so its diff shows what clients will see."""
    printed = CliRunner().invoke(cli, ["schema", *arguments])

    assert printed.exit_code == 0
    assert printed.stdout == (SCHEMAS / name).read_text(encoding="utf-8")


def test_schema_is_one_and_its_examples_fit() -> None:
    """It is of JSON Schema 2020-12, by the reference validator, and each message has examples of its kind."""
    from jsonschema import Draft202012Validator  # noqa: PLC0415  # takes a second, which others need not wait

    schema = contract.json_schema()
    Draft202012Validator.check_schema(schema)
    sides = [DEFINITIONS["ClientMessage"]["oneOf"], DEFINITIONS["ServerMessage"]["anyOf"]]
    for reference in [each for side in sides for each in side]:
        validator = Draft202012Validator({"$defs": DEFINITIONS, **reference})
        examples = DEFINITIONS[reference["$ref"].rpartition("/")[2]]["examples"]
        assert examples
        for example in examples:
            validator.validate(example)
            Draft202012Validator(schema).validate(example)


def test_examples_of_what_is_sent_are_understood() -> None:
    """The relay takes each for what it is an example of."""
    for reference in DEFINITIONS["ClientMessage"]["oneOf"]:
        name = reference["$ref"].rpartition("/")[2]
        for example in DEFINITIONS[name]["examples"]:
            assert type(protocol.parse(json.dumps(example))).__name__ == name


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "{}",
        '{"type":"foo"}',
        '{"type":"subscribe"}',
        '{"type":"subscribe","boardId":1}',
        r'{"type":"subscribe","boardId":"a\u0000"}',
        r'{"type":"unsubscribe","boardId":"\u0000"}',
        '{"type":"authenticate"}',
        '{"type":"subscribe","boardId":"b","cursor":1,"more":{}}',
        r'{"type":"subscribe","boardId":"\n"}',
    ],
)
def test_schema_takes_what_the_relay_takes(text: str) -> None:
    """A client that validates what it sends is never refused for its form, nor held back for nothing."""
    try:
        protocol.parse(text)
    except protocol.BadMessage:
        good = False
    else:
        good = True

    assert (
        Draft202012Validator({"$defs": DEFINITIONS, "$ref": "#/$defs/ClientMessage"}).is_valid(json.loads(text))
        is good
    )


@pytest.mark.parametrize(
    "message",
    [
        {"type": "foo"},
        {"type": "pong", "data": {}},
        SYNC | {"more": 1},
        SYNC | {"cursor": "c"},
        {"type": "board.sync", "data": {"lanes": {"backlog": []}}},
        RESUMABLE | {"reason": "boredom"},
        RESUMABLE | {"reason": None},
        {"type": "task.created", "data": {"id": 1, "lane": None}},
        {"type": "task.updated", "data": {"id": 1, "changes": {}}},
        {"type": "task.moved", "data": {"id": 1, "fromLane": "a"}},
        {"type": "task.deleted", "data": TASK},
        {"type": "batch", "boardId": "b", "cursor": None, "data": []},
        {"type": "batch", "boardId": "b", "data": [SYNC]},
        {"type": "error", "data": {"code": "foo", "message": ""}},
    ],
    ids=json.dumps,
)
def test_what_no_relay_sends_is_noticed(message: dict[str, Any]) -> None:
    """What the tests receive is checked by a schema that lets nothing else pass."""
    with pytest.raises(ValidationError):
        checked(json.dumps(message))


def test_every_kind_is_one() -> None:
    """A message of one kind is of no other."""
    examples = [SYNC, RESUMABLE, *(example for name in KINDS for example in DEFINITIONS[name]["examples"])]
    for example in examples:
        assert sum(validator.is_valid(example) for validator in KINDS.values()) == 1
