"""Effects: what the client's core wants done or reported, and its errors. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from relay.client.following import Following
from relay.client.replica import Change


class RelayError(Exception):
    """What went wrong, in one line. `code` is for programs.

    The codes are those of docs/clients.md, and `closed` (the relay ended or refused the connection, in a way that
    waiting does not help), `unsubscribed` (the board was left before it came), `unusable_board` (what the relay sends
    of it contradicts itself), `other_selection` (the board is followed with another selection already), `forked`
    (the connection belongs to the process that this one was forked from).
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
    """Connect; then say `opened` or `ended`."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message on the connection."""

    text: str


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the connection, or the attempt, and report nothing more of it."""

    politely: bool
    """Whether there is somebody to say good-bye to."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Report changes, all of which the board shows."""

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
    """Report that the token which has waited longest was accepted, or why not."""

    error: RelayError | None = None


@dataclass(frozen=True, slots=True)
class Included:
    """Report that a board includes a transaction, or why that is not known."""

    board: Following
    xid: str
    error: RelayError | None = None


Effect = Attempt | Send | Hangup | Changed | Entered | Failed | Authenticated | Included
