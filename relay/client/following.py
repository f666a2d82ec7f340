"""One board that the Python client follows, over one connection after another. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

from relay.client.replica import Change, Misfit, Replica

State = Literal["connecting", "catching up", "live", "offline"]
"""`offline` whenever there is no connection after the first attempt, and for a board that was refused or left."""

CALM_SECONDS: Final = 60.0
"""Time without a misfit after which the next one counts as the first again."""

Selection = Mapping[str, Sequence[str]]
"""The selected `lanes`, `columns` and `tasks` of a board, sorted; an absent key selects all."""


def selection(
    lanes: Collection[str] | None, columns: Collection[str] | None, tasks: Collection[str | int] | None
) -> Selection:
    """Make a selection. Raises TypeError for anything but collections of strings, or of ids for tasks."""
    wanted = {
        "lanes": (lanes, str, "strings"),
        "columns": (columns, str, "strings"),
        "tasks": (tasks, str | int, "ids"),
    }
    chosen: dict[str, Sequence[str]] = {}
    for name, (its, kind, kinds) in wanted.items():
        if its is None:
            continue
        if isinstance(its, str) or not all(isinstance(each, kind) for each in its):
            raise TypeError(f"{name} is {its!r:.100}: expected a collection of {kinds}")
        chosen[name] = sorted(set(map(str, its)))
    return chosen


class Following:
    """A board that is followed: its tasks, its cursor and its unfinished batch. The session calls its methods."""

    def __init__(self, name: str, state: State, selection: Selection) -> None:
        self.name = name
        self.selection = selection
        self.subscriptions = 0
        """The number of subscriptions; without any, the board is no longer followed."""
        self.state: State = state
        self.replica = Replica()
        self.cursor: str | None = None
        self.present = False
        """Whether a board has arrived."""
        self.fence = 0
        """Number of pongs to await: messages that come before are of another part of the board."""
        self.waits: dict[str, None] = {}
        """The transactions that somebody waits for, in order."""
        self._parts: list[object] = []
        self._batches = 0
        self._misfits = 0
        self._last_misfit = float("-inf")

    @property
    def followed(self) -> bool:
        """Whether its messages can arrive."""
        return self.state in {"live", "catching up"}

    def ask(self) -> str:
        """Return the message that subscribes to it, and drop an unfinished batch."""
        self._parts = []
        return json.dumps({"type": "subscribe", "boardId": self.name, "cursor": self.cursor, **self.selection})

    def receive(self, message: dict[str, Any]) -> list[Change] | None:
        """Handle a message; return the changes, None while the board or batch is incomplete. Raises Misfit."""
        match message["type"]:
            case "board.sync":
                return self._take_board(message)
            case "batch":
                return self._take_part(message)
            case _:
                return self._take_plain(message)

    def _take_board(self, message: dict[str, Any]) -> list[Change]:
        self.replica.replace(message.get("data"))
        self._parts = []
        self.cursor = _cursor(message)
        self.present = True
        reason = message.get("reason")
        return [Change("board.sync", reason=reason if isinstance(reason, str) else None)]

    def _take_part(self, message: dict[str, Any]) -> list[Change] | None:
        if self.cursor is None:
            return None  # a board.sync must come first
        data, cursor = message.get("data"), _cursor(message)
        if not isinstance(data, list):
            raise Misfit
        self._parts += data
        if cursor is None:
            return None
        changes = self.replica.apply(self._parts, self._batches + 1)
        self._parts, self.cursor = [], cursor
        self._batches += 1
        return changes

    def _take_plain(self, message: dict[str, Any]) -> list[Change] | None:
        """Handle a message of a server without cursors."""
        if self.cursor is not None or self.state != "live":
            return None
        return self.replica.apply([message])

    def misfit(self, now: float) -> int:
        """Forget the cursor, and return the number of misfits in a row, including this one."""
        self._misfits = 1 if now - self._last_misfit > CALM_SECONDS else self._misfits + 1
        self._last_misfit = now
        self._parts, self.cursor = [], None
        return self._misfits

    def forget_misfits(self) -> None:
        """Count the next misfit as the first."""
        self._misfits = 0


def _cursor(message: dict[str, Any]) -> str | None:
    cursor = message.get("cursor")
    return cursor if isinstance(cursor, str) else None
