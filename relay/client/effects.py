"""Effects: what the client's core requests or reports, and its errors. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from relay.client.following import Following
from relay.client.replica import Change


class RelayError(Exception):
    """An error of the relay or the connection, in one line. `code` is for programs.

    The codes are those of docs/clients.md, and `closed` (the relay ended or refused the connection, and waiting does
    not help), `unsubscribed` (the board was left before it arrived), `unusable_board` (the board contradicts itself),
    `other_selection` (the board is already followed with another selection), `forked` (the connection belongs to the
    process that this one was forked from).
    """

    def __init__(
        self, code: str, message: str, *, board_id: str | None = None, close_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.board_id = board_id
        self.close_code = close_code


@dataclass(frozen=True, slots=True)
class Attempt:
    """Connect, then call `Session.opened` or `Session.ended`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message on the connection."""

    text: str


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the connection or attempt, and report nothing more about it."""

    politely: bool
    """Whether to perform the closing handshake."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Report changes, all of which the board already contains."""

    board: Following
    changes: list[Change]


@dataclass(frozen=True, slots=True)
class Entered:
    """Report a board's new state."""

    board: Following


@dataclass(frozen=True, slots=True)
class Failed:
    """Report an error, of a board or of the connection."""

    board: Following | None
    error: RelayError


@dataclass(frozen=True, slots=True)
class Authenticated:
    """Report that the token presented first among those unanswered was accepted, or why not."""

    error: RelayError | None = None


@dataclass(frozen=True, slots=True)
class Included:
    """Report that a board includes a transaction, or why that cannot be known."""

    board: Following
    xid: str
    error: RelayError | None = None


Effect = Attempt | Send | Hangup | Changed | Entered | Failed | Authenticated | Included
