"""The contract for machines: a JSON Schema and an AsyncAPI document of all that clients send and receive. Pure.

What clients send is `relay.protocol`'s own models. What they receive is encoded by hand there, for speed; here it is
told as models too, which nothing but the documents is made of. The tests validate every message that they receive
from a relay against them: so they are true.

Rules:
- The codes and reasons are those of `relay.protocol` and `relay.cursor`; the words for them are those of the clients'
  guide.
- The schemas use what JSON Schema 2020-12 and AsyncAPI's own schemas (draft 7) both know.
- What is received may have keys that a client does not know: a newer relay may say more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from relay.model import messages as protocol
from relay.model.cursor import Reason
from relay.model.messages import ErrorCode

VERSION: Final = "1.0.0"
"""Of the contract, not of the relay: a message that clients must learn about raises the second number."""

Format = Literal["json-schema", "asyncapi"]

ERRORS: Final[Mapping[ErrorCode, str]] = {
    "invalid_json": "text that is not JSON",
    "invalid_message": "JSON that is not an object with a type",
    "unknown_type": "a type that is none of the four",
    "invalid_board_id": "a `boardId` that is missing, not a string, or holds U+0000",
    "binary_message": "a binary message",
    "not_allowed": (
        "a board that you may not follow, or not any more: `boardId` says which. "
        "It does not tell whether there is such a board"
    ),
    "not_authenticated": "a fresh token that is not good; the one before it still is",
    "too_many_boards": "one board more than `WS_MAX_BOARDS`: `boardId` says which",
    "too_many_messages": "more messages a second than `WS_MESSAGE_RATE`, or four seconds' worth at once",
}
"""What each error is sent for."""

REASONS: Final[Mapping[Reason, str]] = {
    "cursor_invalid": "what you sent is no cursor of this board",
    "epoch_changed": "the database is another, or was installed anew, restored, failed over, or crashed",
    "schema_changed": "the table's columns or partitions changed",
    "journal_pruned": "you were away for longer than the journal is kept",
    "too_much_missed": "so much was missed, by you or by the relay, that the board is shorter",
    "journalling_paused": "no relay had come for so long that changes were no longer recorded",
    "batch_cut_short": "the relay lost Postgres in the midst of a large batch",
    "truncate": "the table was truncated",
    "resync": "the DBA asked for it",
    "watch_changed": "what is fed, or how, was changed",
    "row_unreadable": "a row could not be recorded",
    "changes_missing": "what the journal has of a row fits no history: triggers were off for a while",
    "fell_behind": "you did not read what you were sent",
    "subscribed_again": (
        "you had followed this board on this connection already: changes may have crossed your cursor on the way"
    ),
}
"""Why a board is sent to who did not ask for all of it."""


class Close(NamedTuple):
    """What a close code means, and whether to come back."""

    meaning: str
    reconnect: str


_NOT_BEFORE: Final = "not before it is mended"

CLOSE_CODES: Final[Mapping[int, Close]] = {
    1000: Close("you closed it", "as you like"),
    1002: Close("a frame was not of the WebSocket protocol", _NOT_BEFORE),
    1006: Close(
        "the connection broke, or no ping was answered for `WS_HEARTBEAT`",
        "yes, with growing pauses",
    ),
    protocol.CloseCode.INVALID_TEXT: Close("a text message was not UTF-8", _NOT_BEFORE),
    protocol.CloseCode.POLICY: Close("20 bad messages in a row, or 5 tokens that are not good", _NOT_BEFORE),
    protocol.CloseCode.TOO_BIG: Close("a message over 1 MiB", _NOT_BEFORE),
    protocol.CloseCode.SERVICE_RESTART: Close(
        "the relay is stopping, perhaps to start again",
        "yes, after a random pause of up to a few seconds: another relay may be there already",
    ),
    protocol.CloseCode.TRY_AGAIN_LATER: Close(
        "you read nothing of what you were sent for `WS_HEARTBEAT`",
        "yes, when you can read again",
    ),
    protocol.CloseCode.TOKEN_EXPIRED: Close("your token has expired", "yes, with a fresh one"),
    protocol.CloseCode.TOKEN_REVOKED: Close("your token is not good any more", "not with this one"),
    protocol.CloseCode.IDLE: Close("you followed no board for `WS_IDLE_TIMEOUT`", "when you want to follow one"),
}
"""How a connection ends: by the relay's codes, and by those that every WebSocket server has."""


def _sometimes(description: str, alias: str | None = None) -> Any:
    """Make a field of a key that is absent or has a value, but is never null."""

    def without_default(schema: dict[str, Any]) -> None:
        del schema["default"]

    return Field(default=None, alias=alias, description=description, json_schema_extra=without_default)


_BOARD: Final = "The board that it is about."
_CURSOR: Final = "How far you are with it. Opaque text, good for this board alone: keep the last one with your tasks."


class Task(BaseModel):
    """A row, whole: an open object with a key for each column that the DBA did not hide.

    Keys are the columns' names in camelCase, values any JSON, as Postgres writes it, with all digits. Only `id`,
    `boardId` and `lane` are sure to be there.
    """

    model_config = ConfigDict(extra="allow")
    id: JsonValue = Field(description="The key: a string or a number, as its column is.")
    board_id: JsonValue = Field(alias="boardId", description="The board that the task is on.")
    lane: JsonValue = Field(description="The lane: a string as a rule; null if the row has none.")


class Board(BaseModel):
    """A whole board."""

    lanes: dict[str, list[Task]] = Field(
        description=(
            f"The tasks by lane, in their order. {', '.join(protocol.LANES)} come first and always, then any other "
            'lane that the board has. Tasks whose lane is null are under "null".'
        ),
        json_schema_extra={"required": list(protocol.LANES)},
    )


class BoardSync(BaseModel):
    """The whole board. It can come at any time, and replaces all that you hold of it."""

    type: Literal["board.sync"]
    data: Board


class ResumableBoardSync(BaseModel):
    """The whole board, for who subscribed with a cursor. It replaces all that you hold of it, and of a batch."""

    type: Literal["board.sync"]
    board_id: str = Field(alias="boardId", description=_BOARD)
    cursor: str = Field(description=_CURSOR)
    reason: Reason = _sometimes("Why the board was sent, if you did not ask for all of it.")
    data: Board


class TaskCreated(BaseModel):
    """A task appeared on the board: hold it."""

    type: Literal["task.created"]
    data: Task


class Changes(BaseModel):
    """What changed of a task."""

    id: JsonValue = Field(description="The task's key.")
    changes: dict[str, JsonValue] = Field(
        description="The columns that changed, and only those, by their camelCase keys: any JSON.",
        min_length=1,
    )


class TaskUpdated(BaseModel):
    """Columns of a task changed: put their values into the one that you hold."""

    type: Literal["task.updated"]
    data: Changes


class Move(BaseModel):
    """From where a task went, and where to."""

    id: JsonValue = Field(description="The task's key.")
    from_lane: JsonValue = Field(alias="fromLane", description="The lane that it was in.")
    to_lane: JsonValue = Field(alias="toLane", description="The lane that it is in.")


class TaskMoved(BaseModel):
    """A task changed its lane. If other columns changed too, `task.updated` follows, with the lane again."""

    type: Literal["task.moved"]
    data: Move


class Key(BaseModel):
    """A task by its key."""

    id: JsonValue = Field(description="The task's key.")


class TaskDeleted(BaseModel):
    """A task left the board: forget it."""

    type: Literal["task.deleted"]
    data: Key


class Batch(BaseModel):
    """Whole transactions, or a part of them, for who subscribed with a cursor.

    A large batch comes in parts. Only the last has the cursor: keep the parts until then, and apply them together. An
    empty one brings a fresh cursor.
    """

    type: Literal["batch"]
    board_id: str = Field(alias="boardId", description=_BOARD)
    cursor: str = _sometimes(_CURSOR)
    data: list[TaskCreated | TaskUpdated | TaskMoved | TaskDeleted] = Field(
        description="The changes, to be applied in this order."
    )


class Pong(BaseModel):
    """Answers `ping`."""

    type: Literal["pong"]


class Authenticated(BaseModel):
    """Answers `authenticate`: the fresh token counts from now on."""

    type: Literal["authenticated"]


class Mistake(BaseModel):
    """What was wrong."""

    code: ErrorCode = Field(description="What it was, for programs.")
    message: str = Field(description="What was found and what was expected, for people.")
    board_id: str = _sometimes("The board that may not be followed.", alias="boardId")


class Error(BaseModel):
    """Answers what cannot be done; the connection lives on. `not_allowed` can come at any time: rights may end."""

    type: Literal["error"]
    data: Mistake


_SENT: Final[Mapping[type[BaseModel], Sequence[Mapping[str, Any]]]] = {
    protocol.Subscribe: [
        {"type": "subscribe", "boardId": "default"},
        {"type": "subscribe", "boardId": "default", "cursor": None},
    ],
    protocol.Unsubscribe: [{"type": "unsubscribe", "boardId": "default"}],
    protocol.Ping: [{"type": "ping"}],
    protocol.Authenticate: [{"type": "authenticate", "token": "your-fresh-token"}],
}
"""What clients send, with examples."""

_TASK: Final = {
    "id": "task-2",
    "boardId": "default",
    "title": "New Task",
    "lane": "backlog",
    "priority": "medium",
    "estimatedHours": 4,
}
_EMPTY: Final[Mapping[str, Any]] = {lane: [] for lane in protocol.LANES}
_LANES: Final = {**_EMPTY, "backlog": [_TASK]}
_NAMED: Final = {"boardId": "default", "cursor": "5e0c…"}
_DELETED: Final = {"type": "task.deleted", "data": {"id": "task-2"}}

_RECEIVED: Final[Mapping[type[BaseModel], Sequence[Mapping[str, Any]]]] = {
    BoardSync: [{"type": "board.sync", "data": {"lanes": _LANES}}],
    ResumableBoardSync: [
        {"type": "board.sync", **_NAMED, "data": {"lanes": _LANES}},
        {"type": "board.sync", **_NAMED, "reason": "truncate", "data": {"lanes": _EMPTY}},
    ],
    TaskCreated: [{"type": "task.created", "data": _TASK}],
    TaskUpdated: [
        {"type": "task.updated", "data": {"id": "task-2", "changes": {"lane": "in_progress", "status": "working"}}}
    ],
    TaskMoved: [{"type": "task.moved", "data": {"id": "task-2", "fromLane": "backlog", "toLane": "in_progress"}}],
    TaskDeleted: [_DELETED],
    Batch: [
        {"type": "batch", "boardId": "default", "data": [{"type": "task.created", "data": _TASK}]},
        {"type": "batch", **_NAMED, "data": [_DELETED]},
    ],
    Pong: [{"type": "pong"}],
    Authenticated: [{"type": "authenticated"}],
    Error: [
        {
            "type": "error",
            "data": {
                "code": "unknown_type",
                "message": "type 'foo' is unknown: expected subscribe, unsubscribe, ping or authenticate",
            },
        },
        {
            "type": "error",
            "data": {"code": "not_allowed", "message": "this board may not be followed", "boardId": "secret"},
        },
    ],
}
"""What clients receive, with examples."""

_REPLIES: Final[Mapping[type[BaseModel], Sequence[type[BaseModel]]]] = {
    protocol.Subscribe: [BoardSync, ResumableBoardSync, Batch, Error],
    protocol.Unsubscribe: [],
    protocol.Ping: [Pong],
    protocol.Authenticate: [Authenticated, Error],
}
"""What answers what clients send."""

_ABOUT: Final = (
    "Every committed change of a Postgres table, pushed to the subscribers of its board. Every message is a JSON "
    "object with a `type`, in a text frame. Leave keys alone that you do not know: a newer relay may say more."
)

_SECURITY: Final[Mapping[str, Mapping[str, str]]] = {
    "header": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer your-token`"},
    "subprotocol": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Sec-WebSocket-Protocol",
        "description": "`relay, bearer.your-token`, for browsers: the relay takes `relay`",
    },
    "query": {
        "type": "httpApiKey",
        "in": "query",
        "name": "token",
        "description": "`?token=your-token`. Addresses end up in logs and histories: prefer the others",
    },
}
"""Ways to present a token, where the relay asks for one."""


def text(its_format: Format) -> str:
    """Return the document as it is printed and checked in: JSON, and a line break."""
    document = json_schema() if its_format == "json-schema" else asyncapi()
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """Make the JSON Schema (2020-12) of any message; `$defs` has one of what is sent, and one of what is received."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of pg-change-relay",
        "description": _ABOUT,
        "x-version": VERSION,
        "x-close-codes": _close_codes(),
        "oneOf": [{"$ref": "#/$defs/ClientMessage"}, {"$ref": "#/$defs/ServerMessage"}],
        "$defs": {
            "ClientMessage": {"description": "What clients send.", "oneOf": _references(_SENT)},
            # A client that is sent cursors and leaves them alone is sent what the others are: so both may fit.
            "ServerMessage": {"description": "What clients receive.", "anyOf": _references(_RECEIVED)},
            **_schemas("#/$defs/{model}"),
        },
    }


def asyncapi() -> dict[str, Any]:
    """Make the AsyncAPI document, from the relay's side: it receives what clients send."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "pg-change-relay", "version": VERSION, "description": _ABOUT},
        "defaultContentType": "application/json",
        "servers": {
            "local": _server("localhost:4002", "ws", "The relay on this machine, as it starts by default."),
            "public": _server("relay.example.com", "wss", "A relay behind TLS; the name is yours."),
        },
        "channels": {"relay": _channel()},
        "operations": _operations(),
        "components": {
            "messages": {model.__name__: _message(model, examples) for model, examples in _all_messages().items()},
            "schemas": _schemas("#/components/schemas/{model}"),
            "securitySchemes": _SECURITY,
        },
    }


class _Generator(GenerateJsonSchema):
    """Leaves titles out that repeat the key."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002  # pydantic's signature
        return False


def _all_messages() -> Mapping[type[BaseModel], Sequence[Mapping[str, Any]]]:
    return {**_SENT, **_RECEIVED}


def _references(models: Mapping[type[BaseModel], object]) -> list[dict[str, str]]:
    return [{"$ref": f"#/$defs/{model.__name__}"} for model in models]


def _schemas(ref_template: str) -> dict[str, Any]:
    """Make the schemas of all models, by name, with examples, and words for each code and reason."""
    messages = _all_messages()
    _, made = models_json_schema(
        [(model, "validation") for model in messages], ref_template=ref_template, schema_generator=_Generator
    )
    made["$defs"]["JsonValue"] = {"description": "Any JSON."}
    schemas: dict[str, Any] = {name: _one_line(schema) for name, schema in made["$defs"].items()}
    for model, examples in messages.items():
        schemas[model.__name__]["examples"] = examples
    schemas["Mistake"]["properties"]["code"]["x-enum-descriptions"] = ERRORS
    schemas["ResumableBoardSync"]["properties"]["reason"]["x-enum-descriptions"] = REASONS
    return schemas


def _one_line(schema: dict[str, Any]) -> dict[str, Any]:
    """Undo the line breaks of a docstring."""
    return schema | {"description": " ".join(schema["description"].split())}


def _close_codes() -> list[dict[str, Any]]:
    return [{"code": int(code), **close._asdict()} for code, close in CLOSE_CODES.items()]


def _server(host: str, its_protocol: str, description: str) -> dict[str, Any]:
    return {
        "host": host,
        "protocol": its_protocol,
        "description": f"{description} It asks for a token if the operator says so; any of the three ways will do.",
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY],
    }


def _channel() -> dict[str, Any]:
    return {
        "address": "/",
        "description": (
            "The one connection, over which a client follows boards. A handshake is answered with HTTP 401 if the "
            "token is not good or the page's origin not allowed, with 503 at the limit of connections and with 429 "
            "at the limit a minute: try again when `Retry-After` has passed."
        ),
        "messages": {
            model.__name__: {"$ref": f"#/components/messages/{model.__name__}"} for model in _all_messages()
        },
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {
                    "type": "object",
                    "properties": {"token": {"type": "string", "description": _SECURITY["query"]["description"]}},
                },
                "bindingVersion": "0.1.0",
            }
        },
        "x-close-codes": _close_codes(),
    }


def _message(model: type[BaseModel], examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kind = examples[0]["type"]
    return {
        "name": kind,
        "title": kind,
        "summary": " ".join((model.__doc__ or "").split()),
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        "examples": [{"payload": example} for example in examples],
    }


def _operations() -> dict[str, Any]:
    channel = {"$ref": "#/channels/relay"}
    operations: dict[str, Any] = {}
    for model, replies in _REPLIES.items():
        operations[_SENT[model][0]["type"]] = {
            "action": "receive",
            "channel": channel,
            "messages": [_in_channel(model)],
            **(
                {"reply": {"channel": channel, "messages": [_in_channel(reply) for reply in replies]}}
                if replies
                else {}
            ),
        }
    return operations | {
        "push": {
            "action": "send",
            "channel": channel,
            "summary": "What the relay sends by itself.",
            "messages": [_in_channel(model) for model in _RECEIVED if model not in {Pong, Authenticated}],
        }
    }


def _in_channel(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/channels/relay/messages/{model.__name__}"}
