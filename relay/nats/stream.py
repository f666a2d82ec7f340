"""The entries of the stream through which publishers pass changes to edges. Pure.

The stream holds what a feed would pass to a hub:

- A *part* is what some transactions of a batch mean to one board, or to all boards.
- A *commit* ends a batch. It says which position the batch leads to, and how many parts each board has in it.
- A *state* says where the stream stands and which cursors are good. There is one every second, so a reader that comes
  finds one near the end.

Rules:
- Batches and states are *steps*, numbered without a gap, and each says which position it goes on from. Every reader
  gets all commits and all states, so it notices a step that is missing. It need not get the parts of boards that
  nobody follows there: for each board that it does read, a commit says how many parts it must have.
- Publishers append and never take back. A publisher that is interrupted leaves a batch without a commit. The next one
  starts with a state, then publishes the whole batch. So parts count for nothing until their commit.
- Messages are encoded by the publisher, once for all edges, and stay as they are.
- No entry takes more bytes than NATS allows, measured on the entry as it is sent. A part is split where necessary. If
  a message fits into no entry, its board must be read again.

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

BESIDE_BYTES: Final = 32 * 1024
"""Maximum size of what a message carries beside; where there is more, selections of its board are read again."""

MAX_BOARDS: Final = 1000
"""Maximum number of boards that a reader names; a reader of more gets the whole stream."""

TOKEN_LETTERS: Final = 200
"""Maximum length of a subject's token. A longer one ends in a hash instead."""


class StreamBroken(Exception):
    """The entries do not follow each other: why, in one line."""


class Effect(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a transaction means to one board: its messages, or None and why the board must be read again.

    With `at`, it is no transaction's, but says what is there as of that snapshot.
    """

    xid: int
    messages: list[msgspec.Raw] | None = None
    reason: Reason = "changes_missing"
    at: str | None = None


class Part(msgspec.Struct, frozen=True, tag="part", tag_field="entry", omit_defaults=True):
    """What some transactions of a batch mean to one board; or to all boards, which must be read again: `sync`."""

    publisher: str
    step: int
    effects: list[Effect]
    board: str | None = None
    sync: Reason | None = None


class End(msgspec.Struct, frozen=True):
    """The positions between which a batch lies: it has everything that became visible between them."""

    after: str
    position: str


class Commit(msgspec.Struct, frozen=True, tag="commit", tag_field="entry", omit_defaults=True):
    """The end of a batch, and how many parts each board has in it; `common` counts those for all boards.

    A batch with very many boards has several commits. Only the last one has the end.
    """

    publisher: str
    step: int
    parts: dict[str, int] = {}
    common: int = 0
    end: End | None = None


class State(msgspec.Struct, frozen=True, tag="state", tag_field="entry"):
    """Where the stream stands: at this step and position, with these cursors. Before, it was at `after`.

    `stream` names everything that goes on from one beginning. With `lost`, this does not go on from what was before.
    Edges send their questions to `asked_at`. `problem` says why nothing comes from Postgres. Everything committed
    `lag` seconds ago is in the stream.
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
        """The cursors that are good."""
        return Epoch(self.run, self.keys, self.shape)


Entry = Part | Commit | State

T = TypeVar("T")


class Encoded(NamedTuple):
    """An entry, and the bytes that are sent of it."""

    entry: Entry
    data: bytes

    @classmethod
    def of(cls, entry: Entry) -> Encoded:
        return cls(entry, encode(entry))


class BoardRefused(msgspec.Struct, frozen=True, tag="refused", tag_field="answer"):
    """Head of a publisher's answer for a board that it cannot read. The error follows.

    `final`: there is no such board to be had, and no use in asking again.
    """

    final: bool = False


class BoardHead(msgspec.Struct, frozen=True, tag="board", tag_field="answer"):
    """Head of a publisher's answer with a board: the server's run, and the snapshot that the board was read in."""

    run: str
    snapshot: str


encode: Final = msgspec.json.Encoder().encode
_decoder: Final[msgspec.json.Decoder[Entry]] = msgspec.json.Decoder(Entry)


def decode(data: bytes) -> Entry:
    """Read an entry. Raises StreamBroken."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as ex:
        raise StreamBroken(f"an entry is not the relay's, or of another version: {ex}") from None


def decode_state(data: bytes) -> State:
    """Read an entry that must be a state. Raises StreamBroken."""
    entry = decode(data)
    if not isinstance(entry, State):
        raise StreamBroken(f"an entry is a {type(entry).__name__.lower()}: expected a state")
    return entry


class _Extended(msgspec.Struct):
    """A message as it stands in the stream, with what it carries beside for selections of its board."""

    type: str
    lanes: Lanes | None = None
    task: dict[str, msgspec.Raw] | None = None


_decode_extended: Final = msgspec.json.Decoder(_Extended).decode


def extended(message: Message) -> msgspec.Raw:
    """Return a message as it stands in the stream; without its task, if that is large."""
    beside = _beside(message.lanes, message.task)
    if len(beside) > BESIDE_BYTES:
        beside = _beside(message.lanes, None)
    return msgspec.Raw(message.json[:-1] + beside + b"}")


def message_of(raw: msgspec.Raw) -> Message:
    """Return a message of the stream as clients are sent it."""
    found = _decode_extended(raw)
    lanes = found.lanes
    if lanes is not None and lanes[0] == lanes[1]:
        lanes = (lanes[1], lanes[1])
    size = len(_beside(found.lanes, found.task))
    return Message(found.type, bytes(raw)[: -1 - size] + b"}", lanes=lanes, task=found.task)


def _beside(lanes: Lanes | None, task: Row | None) -> bytes:
    its_lanes = b"" if lanes is None else b',"lanes":' + encode(lanes)
    return its_lanes + (b"" if task is None else b',"task":' + encode(task))


def is_text(board: str) -> bool:
    """Return whether a board's name can be encoded: not if it has half a surrogate pair, which JSON can bring."""
    return not any("\ud800" <= letter <= "\udfff" for letter in board)


def can_name(board: str, room: int) -> bool:
    """Return whether entries and questions of `room` bytes can name a board and leave room for something else."""
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
    """Write a board's name as a subject's token: percent-encoded, dots too; a long one is shortened with a hash."""
    text = quote(board, safe="").replace(".", "%2E") or "%"
    if len(text) <= TOKEN_LETTERS:
        return text
    return f"{text[: TOKEN_LETTERS // 2]}%-{hashlib.sha256(board.encode()).hexdigest()[:32]}"
