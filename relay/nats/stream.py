"""The entries of the stream through which publishers pass changes to edges. Pure.

The stream holds what a feed would pass to a hub:

- A *part* is what some transactions of a batch mean to one board, or to all boards.
- A *commit* ends a batch. It has the position to which the batch leads, and the number of parts of each board.
- A *state* has the stream's position and the valid cursors. There is one every second, so a new reader finds one near
  the end.

Rules:
- Batches and states are *steps*, numbered without gaps, and each has the position that it continues from. Every
  reader gets all commits and states, so it notices a missing step. It need not get the parts of boards that it does
  not follow; for the boards that it does, a commit says how many parts it must have.
- Publishers only append. A publisher that is interrupted leaves a batch without a commit. The next one starts with a
  state, then publishes the whole batch. So parts do not count until their commit.
- Messages are encoded by the publisher, once for all edges.
- No entry is larger than NATS allows, measured on the entry as sent. Parts are split if necessary. If a message does
  not fit into an entry, its board must be read again.

`assembly.py` makes batches of entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from relay.model.cursor import Epoch, Reason
from relay.model.messages import Lanes, Message, Row

ENTRY_BYTES: Final = 256 * 1024
"""Approximate size of the messages in one entry, in bytes."""

ADDITION_BYTES: Final = 32 * 1024
"""Maximum size of what a message carries for selections; if there is more, selections are read again."""

MAX_BOARDS: Final = 1000
"""Maximum number of boards that a reader filters by; a reader of more gets the whole stream."""

TOKEN_LETTERS: Final = 200
"""Maximum length of a subject's token. A longer one ends in a hash instead."""


class StreamBroken(Exception):
    """The entries are inconsistent. The text says why, in one line."""


class Effect(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a transaction means to one board: its messages, or None and the reason why the board must be read again.

    With `at`, it belongs to no transaction: its messages state values as of that snapshot.
    """

    xid: int
    messages: list[msgspec.Raw] | None = None
    reason: Reason = "changes_missing"
    at: str | None = None


class Part(msgspec.Struct, frozen=True, tag="part", tag_field="entry", omit_defaults=True):
    """What some transactions of a batch mean to one board; or, with `sync`, why all boards must be read again."""

    publisher: str
    step: int
    effects: list[Effect]
    board: str | None = None
    sync: Reason | None = None


class End(msgspec.Struct, frozen=True):
    """The positions before and after a batch, which has everything that became visible between them."""

    after: str
    position: str


class Commit(msgspec.Struct, frozen=True, tag="commit", tag_field="entry", omit_defaults=True):
    """The end of a batch, with the number of parts of each board; `common` counts those for all boards.

    A batch with very many boards has several commits. Only the last one has `end`.
    """

    publisher: str
    step: int
    parts: dict[str, int] = {}
    common: int = 0
    end: End | None = None


class State(msgspec.Struct, frozen=True, tag="state", tag_field="entry"):
    """The stream's step, position and valid cursors. The position before was `after`.

    `stream` identifies everything that continues from one beginning. With `lost`, continuity with what came before is
    broken. Edges send their questions to `asked_at`. `problem` is why nothing comes from Postgres. Everything
    committed more than `lag` seconds ago is in the stream.
    """

    stream: str
    publisher: str
    step: int
    after: str
    position: str
    run: str
    keys: dict[str, bytes]
    shape: str
    asked_at: str
    lost: Reason | None = None
    problem: str | None = None
    lag: float = 0.0

    @property
    def epoch(self) -> Epoch:
        """The valid cursors."""
        return Epoch(self.run, self.keys, self.shape)


Entry = Part | Commit | State

T = TypeVar("T")


class Encoded(NamedTuple):
    """An entry and its encoding."""

    entry: Entry
    data: bytes

    @classmethod
    def of(cls, entry: Entry) -> Encoded:
        return cls(entry, encode(entry))


class BoardRefused(msgspec.Struct, frozen=True, tag="refused", tag_field="answer"):
    """Head of a publisher's answer about a board that it cannot read. The error follows.

    `final`: such a board cannot exist, so asking again is of no use.
    """

    final: bool = False


class BoardHead(msgspec.Struct, frozen=True, tag="board", tag_field="answer"):
    """Head of a publisher's answer with a board: the server's run, and the snapshot in which the board was read."""

    run: str
    snapshot: str


encode: Final = msgspec.json.Encoder().encode
_decoder: Final[msgspec.json.Decoder[Entry]] = msgspec.json.Decoder(Entry)


def decode(data: bytes) -> Entry:
    """Decode an entry. Raises StreamBroken."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as ex:
        raise StreamBroken(f"an entry is not the relay's, or of another version: {ex}") from None


def decode_state(data: bytes) -> State:
    """Decode an entry that must be a state. Raises StreamBroken."""
    entry = decode(data)
    if not isinstance(entry, State):
        raise StreamBroken(f"an entry is a {type(entry).__name__.lower()}: expected a state")
    return entry


class _Extended(msgspec.Struct):
    """A message in the stream, with what selections of its board need in addition."""

    type: str
    lanes: Lanes | None = None
    task: dict[str, msgspec.Raw] | None = None


_decode_extended: Final = msgspec.json.Decoder(_Extended).decode


def extended(message: Message) -> msgspec.Raw:
    """Return a message for the stream; without its task, if that is large."""
    addition = _addition(message.lanes, message.task)
    if len(addition) > ADDITION_BYTES:
        addition = _addition(message.lanes, None)
    return msgspec.Raw(message.json[:-1] + addition + b"}")


def message_of(raw: msgspec.Raw) -> Message:
    """Return a message of the stream as clients get it."""
    found = _decode_extended(raw)
    lanes = found.lanes
    if lanes is not None and lanes[0] == lanes[1]:
        lanes = (lanes[1], lanes[1])
    size = len(_addition(found.lanes, found.task))
    return Message(found.type, bytes(raw)[: -1 - size] + b"}", lanes=lanes, task=found.task)


def _addition(lanes: Lanes | None, task: Row | None) -> bytes:
    its_lanes = b"" if lanes is None else b',"lanes":' + encode(lanes)
    return its_lanes + (b"" if task is None else b',"task":' + encode(task))


def is_text(board: str) -> bool:
    """Return whether a board's name can be encoded. JSON can contain half a surrogate pair, which cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in board)


def can_name(board: str, room: int) -> bool:
    """Return whether entries and questions of `room` bytes can contain a board's name and leave enough room."""
    return is_text(board) and len(encode(board)) <= room // 2


def fitted(part: Part, room: int) -> Iterator[Encoded]:
    """Split a part into entries of about ENTRY_BYTES and at most `room` bytes.

    If a message does not fit into an entry, the board must be read again after its transaction.
    """
    limit = room - len(encode(msgspec.structs.replace(part, effects=[])))
    pieces = (piece for effect in part.effects for piece in _pieces(effect, limit))
    for effects in _portions(pieces, lambda effect: len(encode(effect)) + 1, limit):
        yield Encoded.of(msgspec.structs.replace(part, effects=effects))


def _pieces(effect: Effect, limit: int) -> Iterator[Effect]:
    """Split what a transaction means to a board into pieces of at most `limit` bytes."""
    room = limit - len(encode(msgspec.structs.replace(effect, messages=[]))) - 1
    if effect.messages is None or any(len(message) > room for message in effect.messages):
        yield msgspec.structs.replace(effect, messages=None)
        return
    for messages in _portions(effect.messages, lambda message: len(message) + 1, room):
        yield msgspec.structs.replace(effect, messages=messages)


def commits(publisher: str, step: int, parts: Mapping[str | None, int], end: End, room: int) -> Iterator[Encoded]:
    """End a batch with these numbers of parts for each board, in entries of at most `room` bytes."""
    last = Commit(publisher, step, common=parts.get(None, 0), end=end)
    limit = room - len(encode(last)) - len(b',"parts":{}')
    counts = [(board, count) for board, count in parts.items() if board is not None]
    *others, rest = [*_portions(counts, lambda count: len(encode(count)), limit)] or [[]]
    for portion in others:
        yield Encoded.of(Commit(publisher, step, dict(portion)))
    yield Encoded.of(msgspec.structs.replace(last, parts=dict(rest)))


def _portions(items: Iterable[T], size_of: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Split into portions of about ENTRY_BYTES, and of at most `limit` bytes."""
    portion: list[T] = []
    size = 0
    for item in items:
        item_size = size_of(item)
        if portion and size + item_size > min(ENTRY_BYTES, limit):
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += item_size
    if portion:
        yield portion


def token(board: str) -> str:
    """Return a board's name as a token of a subject: percent-encoded, including dots. A long one ends in a hash."""
    text = quote(board, safe="").replace(".", "%2E") or "%"
    if len(text) <= TOKEN_LETTERS:
        return text
    return f"{text[: TOKEN_LETTERS // 2]}%-{hashlib.sha256(board.encode()).hexdigest()[:32]}"
