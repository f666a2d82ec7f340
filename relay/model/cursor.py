"""Cursors: a client's position in the changes of one board, which the client keeps. Pure.

A cursor is a snapshot with everything needed to validate it: the run of the server in which it was taken, the shape
of the watched tables, and a seal over these and the board's name. The seal's key is known only to the database and
its relays, so every relay of a database accepts the cursors of all others.

Rules:
- To clients a cursor is opaque: text without spaces, `run.shape.snapshot.seal`.
- A cursor is accepted, or refused for one of the reasons below. Nothing in it is trusted before its seal is checked.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from relay.model.snapshot import Snapshot

Reason = Literal[
    "cursor_invalid",  # malformed, forged, or another board's
    "epoch_changed",  # another database, or one that was restored or installed again, failed over, or crashed
    "schema_changed",  # the watched tables have another shape
    "journal_pruned",  # the journal no longer holds what follows
    "too_much_missed",  # the board is shorter than everything that follows
    "journalling_paused",  # the journal was full for a while
    "batch_cut_short",  # the relay lost Postgres in the middle of a large batch
    "truncate",
    "resync",  # somebody called relay.resync()
    "lanes_changed",  # a lane of the board was added, renamed, reordered or removed, or changed board
    "extras_changed",  # tasks show data of other tables that changed and could not be read
    "watch_changed",  # a table is watched, no longer watched, or watched with other options
    "row_unreadable",  # the triggers could not read a row
    "changes_missing",  # the journal's entries for a row contradict each other: triggers were off for a while
    "fell_behind",  # the client did not read what it was sent
    "subscribed_again",  # on the same connection, where changes sent before may have crossed the cursor
]
"""Why a client is sent a board that it did not ask for."""

_FORM: Final = re.compile(r"([0-9a-f]{12})\.([0-9a-f]{12})\.([0-9:,]+)\.([A-Za-z0-9_-]{22})", re.ASCII)


class CursorRefused(Exception):
    """A cursor cannot be resumed from."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Epoch:
    """What cursors are validated against: the server's current run, the keys of all valid runs, and the shape."""

    run: str
    keys: Mapping[str, bytes]
    shape: str

    def seal(self, board: str, snapshot: Snapshot) -> str:
        """Return the cursor of a board as of a snapshot."""
        text = f"{self.run}.{self.shape}.{snapshot}"
        return f"{text}.{_seal(self.keys[self.run], board, text)}"

    def open(self, board: str, cursor: str) -> Snapshot:
        """Return the snapshot of a cursor of this board. Raises CursorRefused."""
        if not (match := _FORM.fullmatch(cursor)):
            raise CursorRefused("cursor_invalid")
        run, shape, snapshot, seal = match.groups()
        if (key := self.keys.get(run)) is None:
            raise CursorRefused("epoch_changed")
        if not hmac.compare_digest(seal, _seal(key, board, f"{run}.{shape}.{snapshot}")):
            raise CursorRefused("cursor_invalid")
        if shape != self.shape:
            raise CursorRefused("schema_changed")
        return Snapshot.parse(snapshot)


def _seal(key: bytes, board: str, text: str) -> str:
    # The text contains no line break, so no other text and board are joined to the same bytes.
    digest = hmac.digest(key, f"{text}\n{board}".encode(errors="surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()
