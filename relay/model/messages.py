"""The messages between clients and the server: the public contract. Pure.

Every message is a JSON object with a `type`. Clients send `subscribe`, `unsubscribe`, `includes`, `authenticate` and
`ping`; `parse` checks these. The server's messages have `type` and `data` and nothing else at the top level, except
that resumable clients also get the board and the cursor in `board.sync` and `batch`. They are encoded here, once for
all clients that receive them.

Each message is a model, from which schema.py makes the schemas. Messages to clients take their type and keys from the
model, but are assembled as bytes, for speed.

Rules:
- Values of rows are passed through as the JSON that Postgres wrote (`msgspec.Raw`), and never parsed, so numbers keep
  every digit.
- Bad input is answered, never ignored: `parse` raises BadMessage, whose code and text are sent to the client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import msgspec
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictInt, StrictStr, TypeAdapter, ValidationError

from relay.model.cursor import Reason
from relay.order import OrderKey, arranged

MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""Maximum size of a client's message; a larger one closes the connection with code 1009."""

MAX_BOARD_CHARACTERS: Final = 512
"""Maximum length of a board's name, which is kept as long as the connection follows the board."""

MAX_SELECTION_CHARACTERS: Final = 2048
"""Maximum length of all lanes, columns and ids of a subscription together, which are kept just as long."""

MAX_SELECTED: Final = 100
"""Maximum number of lanes, columns and tasks in a selection together."""

MAX_LIST_BYTES: Final = 32 * 1024
"""Maximum size of a list or object that is parsed, more than any valid one has. Parsing a mebibyte of them took six
seconds and a gigabyte of memory."""

MAX_TOKEN_CHARACTERS: Final = 8192
"""Maximum length of a token, the same as in a header."""

MAX_BAD_MESSAGES: Final = 20
"""Maximum number of bad messages without a good one in between; after that, the connection is closed with code
1008."""

PART_BYTES: Final = 256 * 1024
"""Approximate size of a part of a batch. Many clients refuse messages over 1 MiB."""

LANES: Final = ("backlog", "todo", "in_progress", "done", "recovery")
"""The lanes that every `board.sync` shows, in this order, before any other lane of the board."""

Row = Mapping[str, msgspec.Raw]
"""A task as clients see it: camelCase keys, each value the JSON that Postgres wrote."""


class CloseCode(IntEnum):
    """Why the server closes a connection. A client should reconnect after all but 1008, 1009 and 4003."""

    INVALID_TEXT = 1007  # a text message was not UTF-8
    POLICY = 1008  # the client sent bad messages only, or several invalid tokens
    TOO_BIG = 1009  # the client sent a message over the limit
    SERVICE_RESTART = 1012  # the relay is stopping
    TRY_AGAIN_LATER = 1013  # the client did not read what it was sent
    TOKEN_EXPIRED = 4001  # the client's token has expired; it may come back with a fresh one
    REFUSED = 4003  # the client's token is not valid, or no longer, or its page's origin is not allowed
    IDLE = 4008  # the client has followed no board for too long


_XID: Final = re.compile(r"^[1-9][0-9]{0,19}$", re.ASCII)
_XID_EXPECTED: Final = "expected what pg_current_xact_id() gives, as a string of digits"
_MESSAGE_EXPECTED: Final = 'expected an object with a type, like {"type":"subscribe","boardId":"default"}'
_TYPES_EXPECTED: Final = "expected subscribe, unsubscribe, includes, ping or authenticate"

_BOARD_ID: Final[Any] = Field(
    alias="boardId",
    description=f"The board's name, up to {MAX_BOARD_CHARACTERS} characters. Postgres has no text with U+0000.",
    json_schema_extra={"pattern": r"^[^\u0000]*$", "maxLength": MAX_BOARD_CHARACTERS},
)


class Subscribe(BaseModel):
    """Asks for a board: its `board.sync`, then its changes. Subscribing again sends a fresh `board.sync`.

    With `cursor`, even null, the subscription is resumable: messages carry cursors, and a client that comes back with
    the last one gets what it missed. If the cursor cannot be honoured, it gets the board with a reason.
    """

    model_config = ConfigDict(frozen=True)
    type: Literal["subscribe"]
    board_id: StrictStr = _BOARD_ID
    cursor: JsonValue = Field(
        default=None, description="The last cursor that you were sent for this board, null at first."
    )
    lanes: list[StrictStr] | None = Field(
        default=None,
        fail_fast=True,
        description="The lanes to send, by their keys in `board.sync`; all if absent. A task that leaves them is "
        "`task.deleted`, one that enters them `task.created`. Requires a `cursor`.",
    )
    columns: list[StrictStr] | None = Field(
        default=None,
        fail_fast=True,
        description="The columns to send, by their keys in tasks; all if absent. `id`, `boardId` and `lane` are "
        "always sent. Requires a `cursor`.",
    )
    tasks: list[StrictStr | StrictInt] | None = Field(
        default=None,
        fail_fast=True,
        description="The tasks to send, by their ids; all if absent. A numeric id can be a string of its digits. "
        "Requires a `cursor`.",
    )

    @property
    def resumable(self) -> bool:
        return "cursor" in self.model_fields_set


class Unsubscribe(BaseModel):
    """Ends a subscription, if there is one."""

    model_config = ConfigDict(frozen=True)
    type: Literal["unsubscribe"]
    board_id: StrictStr = _BOARD_ID


class Includes(BaseModel):
    """Asks for an answer as soon as a board that you follow includes a transaction.

    The answer, `included`, follows all changes of the transaction. It also comes if the transaction changed nothing
    or was rolled back. If the transaction does not end in time, an error with the code `not_included` comes instead.
    """

    model_config = ConfigDict(frozen=True)
    type: Literal["includes"]
    board_id: StrictStr = _BOARD_ID
    xid: StrictStr = Field(
        description="The transaction's id from `pg_current_xact_id()`, called within it: decimal digits.",
        json_schema_extra={"pattern": _XID.pattern},
    )


class Ping(BaseModel):
    """Is answered with `{"type":"pong"}`."""

    model_config = ConfigDict(frozen=True)
    type: Literal["ping"]


class Authenticate(BaseModel):
    """Presents a fresh token before the current one expires. Subscriptions that it allows continue.

    Is answered with `{"type":"authenticated"}`, or with an error, in which case the current token remains valid.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)
    type: Literal["authenticate"]
    token: StrictStr = Field(
        repr=False, max_length=MAX_TOKEN_CHARACTERS, description="A static token or a JSON Web Token."
    )


ClientMessage = Subscribe | Unsubscribe | Includes | Ping | Authenticate

_client_message: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])

_KEYS: Final = sorted(
    {field.alias or name for one in get_args(ClientMessage) for name, field in one.model_fields.items()}
)
_Known: Final = msgspec.defstruct("_Known", [(key, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for key in _KEYS])
_decode_json: Final = msgspec.json.Decoder(msgspec.Raw).decode
_decode_known: Final = msgspec.json.Decoder(_Known).decode
_LISTS: Final = {b"[": msgspec.Raw(b"[null]"), b"{": msgspec.Raw(b"{}")}
"""Replacements for lists and objects that are too long, which are invalid for every key."""

ErrorCode = Literal[
    "invalid_json",
    "invalid_message",
    "unknown_type",
    "invalid_board_id",
    "invalid_xid",
    "invalid_selection",
    "board_unavailable",
    "binary_message",
    "not_allowed",
    "not_authenticated",
    "not_subscribed",
    "not_included",
    "too_many_boards",
    "too_many_waits",
    "too_many_selections",
    "too_many_messages",
]


class BadMessage(Exception):
    """A client's message is not allowed by the protocol. The text says what was found and what was expected."""

    def __init__(self, code: ErrorCode, text: str, board: str | None = None, xid: str | None = None) -> None:
        super().__init__(text)
        self.code: ErrorCode = code
        self.board = board
        self.xid = xid


def parse(text: str) -> ClientMessage:
    """Parse a client's message. Unknown keys are ignored, so that newer clients can talk to older relays.

    Raises BadMessage.
    """
    try:
        message = _client_message.validate_json(_known(text))
    except ValidationError as ex:
        raise _bad_message(ex) from None
    if isinstance(message, Subscribe | Unsubscribe | Includes):
        _check_board(message.board_id)
    if isinstance(message, Subscribe):
        _check_selection(message)
    if isinstance(message, Includes) and not (_XID.fullmatch(message.xid) and int(message.xid) < 2**64):
        raise BadMessage("invalid_xid", f"xid {message.xid!r:.100} is no transaction id: {_XID_EXPECTED}")
    return message


def _known(text: str) -> bytes:
    """Return the message with its known keys only; the others are skipped, whatever their size. Raises BadMessage."""
    try:
        known = _decode_known(_decode_json(text))
    except RecursionError:
        raise BadMessage(
            "invalid_json", "the message is nested too deeply: expected an object of strings and lists"
        ) from None
    except msgspec.ValidationError:
        raise BadMessage("invalid_message", _MESSAGE_EXPECTED) from None
    except msgspec.DecodeError as ex:
        raise BadMessage("invalid_json", f"the message is not JSON: {ex}") from None
    for key in _KEYS:
        value = getattr(known, key)
        if value is not msgspec.UNSET and len(value) > MAX_LIST_BYTES:
            setattr(known, key, _LISTS.get(bytes(value)[:1], value))
    return _encode(known)


def _check_selection(message: Subscribe) -> None:
    chosen = [each for each in (message.lanes, message.columns, message.tasks) if each is not None]
    if chosen and not message.resumable:
        raise BadMessage(
            "invalid_selection", "lanes, columns and tasks need a cursor beside them, null at first", message.board_id
        )
    number, size = sum(map(len, chosen)), sum(len(str(one)) for each in chosen for one in each)
    if number > MAX_SELECTED or size > MAX_SELECTION_CHARACTERS:
        raise BadMessage(
            "invalid_selection",
            f"found {number} lanes, columns and tasks of {size} characters together: "
            f"expected {MAX_SELECTED} and {MAX_SELECTION_CHARACTERS} at most",
            message.board_id,
        )


def _check_board(board: str) -> None:
    if "\0" in board:
        # Postgres has no such text, so no board can have that name.
        raise BadMessage("invalid_board_id", "boardId has the character U+0000, which no board's name can hold")
    if (length := len(board)) > MAX_BOARD_CHARACTERS:
        raise BadMessage(
            "invalid_board_id", f"boardId has {length} characters: expected {MAX_BOARD_CHARACTERS} at most"
        )


_TEXTS: Final[Mapping[object, tuple[ErrorCode, str]]] = {
    "boardId": ("invalid_board_id", "expected a string"),
    "xid": ("invalid_xid", _XID_EXPECTED),
}
"""The errors for required keys that are missing or not strings."""


def _bad_message(ex: ValidationError) -> BadMessage:
    error = ex.errors(include_url=False)[0]
    kind, field = error["type"], error["loc"][-1] if error["loc"] else None
    if kind == "json_invalid":
        return BadMessage("invalid_json", f"the message is not JSON: {error['ctx']['error']}")
    if kind == "union_tag_invalid":
        tag = error["input"]["type"]
        found = f"{tag!r:.100} is unknown" if isinstance(tag, str) else f"is of type {_json_type(tag)}"
        return BadMessage("unknown_type", f"type {found}: {_TYPES_EXPECTED}")
    if field in _TEXTS:
        found = "is missing" if kind == "missing" else f"is of type {_json_type(error['input'])}"
        code, expected = _TEXTS[field]
        return BadMessage(code, f"{field} {found}: {expected}")
    return BadMessage(*_unfit(kind, error["loc"][1:2]))


def _unfit(kind: str, key: tuple[int | str, ...]) -> tuple[ErrorCode, str]:
    """Describe the error in an optional key, or in the message as a whole."""
    match key:
        case ("lanes" | "columns" as name,):
            return "invalid_selection", f"{name} is no list of up to {MAX_SELECTED} strings: expected one, or null"
        case ("tasks",):
            return "invalid_selection", (
                f"tasks is no list of up to {MAX_SELECTED} ids: expected strings or integers in one, or null"
            )
        case ("token",) if kind == "string_too_long":
            return "invalid_message", f"token is too long: expected {MAX_TOKEN_CHARACTERS} characters at most"
        case ("token",):
            return "invalid_message", "token is missing or no string: expected the token as a string"
    return "invalid_message", _MESSAGE_EXPECTED


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"


# Messages from the server -----------------------------------------------------------------------------------


def _sometimes(description: str, alias: str | None = None) -> Any:
    """Make a field whose key can be absent, but is never null."""

    def without_default(schema: dict[str, Any]) -> None:
        del schema["default"]

    return Field(default=None, alias=alias, description=description, json_schema_extra=without_default)


_BOARD: Final = "The board that this is about."
_CURSOR: Final = "Your position in the board's changes. Opaque, valid for this board only: store the last one."


class Task(BaseModel):
    """A whole row: an open object with a key for each column that the DBA did not hide.

    Keys are the columns' names in camelCase. Values are any JSON, as Postgres writes it, with all digits. Only `id`,
    `boardId` and `lane` are always there.
    """

    model_config = ConfigDict(extra="allow")
    id: JsonValue = Field(description="The key: a string or a number, like its column.")
    board_id: JsonValue = Field(alias="boardId", description="The board that the task is on.")
    lane: JsonValue = Field(description="The lane: usually a string; null if the row has none.")


class Order(BaseModel):
    """A key by which the tasks of a lane are ordered."""

    key: str = Field(description="The key in the task. If a task lacks it, it counts as null.")
    descending: bool = Field(description="Whether greater values come first.")
    nulls_first: bool = Field(alias="nullsFirst", description="Whether nulls come first; otherwise they come last.")
    values: list[str] = _sometimes("For an enum: its values in ascending order.")


class Board(BaseModel):
    """A whole board."""

    lanes: dict[str, list[Task]] = Field(
        description=(
            f"The tasks by lane, in their order. {', '.join(LANES)} always come first, then any other lane of the "
            'board. Tasks whose lane is null are under "null". If there are `laneNames`, these are exactly the '
            "board's lanes, in their order, including empty ones. If you selected lanes, these are the selected ones."
        ),
    )
    lane_names: dict[str, str | None] = _sometimes(
        "The lanes' names, if lanes are rows of their own table.", alias="laneNames"
    )
    lane_order: list[str] = _sometimes(
        "The keys of `laneNames` in the lanes' order, for languages whose objects have no order.", alias="laneOrder"
    )
    order_by: list[Order] = _sometimes(
        "The order of the tasks in a lane: by the first key, then the next, and finally by `id`, ascending. Sort by "
        "it after each change. Booleans come before numbers, and numbers before strings; strings are compared by "
        "code points. Absent if no order is declared, or if the watched tables have different ones.",
        alias="orderBy",
    )


class WholeBoard(Board):
    """A board with all lanes."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["laneNames"]}, {"properties": {"lanes": {"required": list(LANES)}}}]
        }
    )


class BoardSync(BaseModel):
    """The whole board. It can come at any time, and replaces your copy."""

    type: Literal["board.sync"]
    data: WholeBoard


class ResumableBoardSync(BaseModel):
    """The whole board, for clients that subscribed with a cursor. It replaces your copy and any unfinished batch."""

    type: Literal["board.sync"]
    board_id: str = Field(alias="boardId", description=_BOARD)
    cursor: str = Field(description=_CURSOR)
    reason: Reason = _sometimes("Why the board was sent, if you did not ask for it.")
    data: Board


class TaskCreated(BaseModel):
    """A task appeared on the board: add it."""

    type: Literal["task.created"]
    data: Task


class Changes(BaseModel):
    """The changes of a task."""

    id: JsonValue = Field(description="The task's key.")
    changes: dict[str, JsonValue] = Field(
        description="The changed columns only, by their camelCase keys: any JSON.",
        min_length=1,
    )


class TaskUpdated(BaseModel):
    """Columns of a task changed: update them in your copy."""

    type: Literal["task.updated"]
    data: Changes


class Move(BaseModel):
    """A task's old and new lane."""

    id: JsonValue = Field(description="The task's key.")
    from_lane: JsonValue = Field(alias="fromLane", description="The lane that it was in.")
    to_lane: JsonValue = Field(alias="toLane", description="The lane that it is in.")


class TaskMoved(BaseModel):
    """A task changed its lane. If other columns changed too, `task.updated` follows and repeats the lane."""

    type: Literal["task.moved"]
    data: Move


class Key(BaseModel):
    """The key of a task."""

    id: JsonValue = Field(description="The task's key.")


class TaskDeleted(BaseModel):
    """A task left the board: remove it."""

    type: Literal["task.deleted"]
    data: Key


class Batch(BaseModel):
    """Whole transactions, or a part of them, for clients that subscribed with a cursor.

    A large batch comes in parts. Only the last part has the cursor: collect the parts until then, and apply them
    together. An empty batch brings a fresh cursor.
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
    """Answers `authenticate`: the fresh token is in use from now on."""

    type: Literal["authenticated"]


class Inclusion(BaseModel):
    """A board, and a transaction that it includes."""

    board_id: str = Field(alias="boardId", description=_BOARD)
    xid: str = Field(description="The transaction that you asked for.")


class Included(BaseModel):
    """Answers `includes`: you were sent everything that the transaction changed on this board."""

    type: Literal["included"]
    data: Inclusion


class Mistake(BaseModel):
    """What was wrong."""

    code: ErrorCode = Field(description="The kind of error, for programs.")
    message: str = Field(description="What was found and what was expected, for people.")
    board_id: str = _sometimes(_BOARD, alias="boardId")
    xid: str = _sometimes("The transaction of an `includes`.")


class Error(BaseModel):
    """Something could not be done; the connection stays open. `not_allowed` can come at any time: rights may end."""

    type: Literal["error"]
    data: Mistake


# Encoding ---------------------------------------------------------------------------------------------------


Lanes = tuple[msgspec.Raw, msgspec.Raw]
"""The lane that a task was in, and the one that it is in; the same object if it is one lane."""


class Message(NamedTuple):
    """An encoded message to clients, with its cursor, if it has one.

    To derive the messages of selections, it also has the lanes of a task that existed before, and the whole task if
    its lane changed.
    """

    type: str
    json: bytes
    cursor: str | None = None
    lanes: Lanes | None = None
    task: Row | None = None


_encode = msgspec.json.Encoder().encode
_decode_text = msgspec.json.Decoder(str).decode


def _kind(model: type[BaseModel]) -> str:
    """Return the `type` of a message."""
    return str(get_args(model.model_fields["type"].annotation)[0])


def _keys(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of an object, in the order of its fields."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


class _Form:
    """Encodes messages of one model."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._kind = _kind(model)
        data = model.model_fields["data"].annotation
        assert isinstance(data, type)
        assert issubclass(data, BaseModel)
        self._keys = _keys(data)

    def whole(self, data: object, lanes: Lanes | None = None, task: Row | None = None) -> Message:
        """Encode a message with these data; lanes and task are for selections only."""
        return Message(self._kind, _encode({"type": self._kind, "data": data}), None, lanes, task)

    def of(self, *values: object, lanes: Lanes | None = None, task: Row | None = None) -> Message:
        """Encode a message with the values of its data, in the model's order; trailing ones can be left out."""
        return self.whole(dict(zip(self._keys, values, strict=False)), lanes, task)


_CREATED, _UPDATED = _Form(TaskCreated), _Form(TaskUpdated)
_MOVED, _DELETED = _Form(TaskMoved), _Form(TaskDeleted)
_ERROR, _INCLUDED = _Form(Error), _Form(Included)
_SYNC, _BATCH = _kind(BoardSync), _kind(Batch)
_TYPE, _BOARD_KEY, _CURSOR_KEY, _REASON_KEY, _ = _keys(ResumableBoardSync)

PONG: Final = Message(_kind(Pong), _encode({"type": _kind(Pong)}))
AUTHENTICATED: Final = Message(_kind(Authenticated), _encode({"type": _kind(Authenticated)}))


Meaning = list[Message] | Reason
"""What a transaction means to a board: messages, or the reason why the board must be read again."""


def error(code: ErrorCode, text: str, board: str | None = None, xid: str | None = None) -> Message:
    """Report an error, perhaps about a board, or about a transaction that was asked for with `includes`."""
    return _ERROR.of(*(value for value in (code, text, board, xid) if value is not None))


def included(board: str, xid: int) -> Message:
    """Announce that a board includes a transaction."""
    return _INCLUDED.of(board, str(xid))


def task_created(task: Row) -> Message:
    """Announce a row that appeared on the board."""
    return _CREATED.whole(task)


def task_updated(task_id: msgspec.Raw, changes: Row, lanes: Lanes | None = None) -> Message:
    """Announce the changed columns."""
    return _UPDATED.of(task_id, changes, lanes=lanes)


def task_moved(
    task_id: msgspec.Raw, from_lane: msgspec.Raw, to_lane: msgspec.Raw, task: Row | None = None
) -> Message:
    """Announce a change of lane."""
    return _MOVED.of(task_id, from_lane, to_lane, lanes=(from_lane, to_lane), task=task)


def task_deleted(task_id: msgspec.Raw, lane: msgspec.Raw | None = None) -> Message:
    """Announce a row that left the board."""
    return _DELETED.of(task_id, lanes=None if lane is None else (lane, lane))


def board_data(
    tasks: Sequence[Row],
    declared: Sequence[tuple[str, str | None]] | None = None,
    order: Sequence[OrderKey] | None = None,
) -> bytes:
    """Encode a whole board: the tasks by lane, the guide's lanes first.

    If lanes are declared, each with its name, they replace the guide's. Without an order, tasks stay in the order in
    which they are given.
    """
    if order is not None:
        tasks = _in_order(tasks, order)
    names = None if declared is None else dict(declared)
    lanes: dict[str, list[Row]] = {lane: [] for lane in (LANES if names is None else names)}
    for task in tasks:
        lanes.setdefault(text_of(task["lane"]), []).append(task)
    beside: dict[str, object] = {} if names is None else {"laneNames": names, "laneOrder": list(names)}
    if order is not None:
        beside["orderBy"] = [_order_key(by) for by in order]
    return _encode({"lanes": lanes} | beside)


def _in_order(tasks: Sequence[Row], order: Sequence[OrderKey]) -> list[Row]:
    keys = [*(by.key for by in order), "id"]
    decoded = [({key: _value(task[key]) for key in keys if key in task}, task) for task in tasks]
    return [task for _, task in arranged(decoded, order, lambda each, key: each[0].get(key))]


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.MsgspecError:  # a number out of msgspec's range
        text = bytes(raw).decode()
    try:
        return json.loads(text)
    except ValueError:  # and out of that of Python's int
        return Decimal(text)


def _order_key(by: OrderKey) -> Mapping[str, object]:
    return {"key": by.key, "descending": by.descending, "nullsFirst": by.nulls_first} | (
        {} if by.values is None else {"values": by.values}
    )


def board_sync(data: bytes) -> Message:
    """Send a whole board, encoded by `board_data`."""
    return Message(_SYNC, _with_data({_TYPE: _SYNC}, data))


def resumable_sync(board: str, cursor: str, reason: Reason | None, data: bytes) -> Message:
    """Send a whole board to a resumable client, with the reason if it did not ask for it."""
    top = {_TYPE: _SYNC, _BOARD_KEY: board, _CURSOR_KEY: cursor} | ({_REASON_KEY: reason} if reason else {})
    return Message(_SYNC, _with_data(top, data), cursor)


def batch(board: str, cursor: str | None, messages: Sequence[Message]) -> list[Message]:
    """Make the messages of a batch, in parts of about PART_BYTES; the last part has the cursor, if there is one."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for message in messages:
        if size > PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(message.json)
        size += len(message.json)
    top = {_TYPE: _BATCH, _BOARD_KEY: board}
    tops = [top] * (len(parts) - 1) + [top | ({_CURSOR_KEY: cursor} if cursor else {})]
    return [
        Message(_BATCH, _with_data(its_top, b"[" + b",".join(part) + b"]"), its_top.get(_CURSOR_KEY))
        for its_top, part in zip(tops, parts, strict=True)
    ]


def _with_data(top: Mapping[str, str], data: bytes) -> bytes:
    """Encode the top level of a message around data that are already encoded."""
    return _encode(top)[:-1] + b',"data":' + data + b"}"


def text_of(value: msgspec.Raw) -> str:
    """Return the key of a lane or a task as text: a string itself, `null` or a number as JSON.

    `board.sync` lists lanes under these texts.
    """
    text = bytes(value)
    return _decode_text(text) if text.startswith(b'"') else text.decode()
