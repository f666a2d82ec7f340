"""One board that the Python client follows, over one connection after another. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

from relay.client.replica import Change, Misfit, Replica

State = Literal["connecting", "catching up", "live", "offline"]
"""`offline` whenever there is no connection after the first attempt, and of a board that was refused or left."""

CALM_SECONDS: Final = 60.0
"""Time without a misfit after which the next one counts as the first again."""

Selection = Mapping[str, Sequence[str]]
"""The `lanes`, `columns` and `tasks` of a board that are followed, in order; all of those that are not said."""


def selection(
    lanes: Collection[str] | None, columns: Collection[str] | None, tasks: Collection[str | int] | None
) -> Selection:
    """Select lanes, columns, and tasks by their ids. Raises TypeError for what is no collection of these."""
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
    """One board that is followed: what is held, and how far it has come. Its methods are for the session."""

    def __init__(self, name: str, state: State, selection: Selection) -> None:
        self.name = name
        self.selection = selection
        self.subscriptions = 0
        """For how many the board is followed; the last one to end takes it along."""
        self.state: State = state
        self.replica = Replica()
        self.cursor: str | None = None
        self.present = False
        """Whether there has been a board."""
        self.waits: dict[str, None] = {}
        """The transactions that are waited for, in the order in which they were asked about."""
        self._parts: list[object] = []
        self._batches = 0
        self._misfits = 0
        self._last_misfit = float("-inf")

    @property
    def followed(self) -> bool:
        """Whether messages of it may come."""
        return self.state in {"live", "catching up"}

    def ask(self) -> str:
        """Return the message that subscribes to it."""
        self._parts = []
        return json.dumps({"type": "subscribe", "boardId": self.name, "cursor": self.cursor, **self.selection})

    def receive(self, message: dict[str, Any]) -> list[Change] | None:
        """Take a message; return what changed, None while the board is not there or whole. Raises Misfit."""
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
            return None  # a board.sync is to come first
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
        """From a server without cursors."""
        if self.cursor is not None or self.state != "live":
            return None
        return self.replica.apply([message])

    def misfit(self, now: float) -> int:
        """Forget how far it has come; return the number of misfits in a row, this one included."""
        self._misfits = 1 if now - self._last_misfit > CALM_SECONDS else self._misfits + 1
        self._last_misfit = now
        self._parts, self.cursor = [], None
        return self._misfits

    def forget_misfits(self) -> None:
        """Count the next one as the first."""
        self._misfits = 0


def _cursor(message: dict[str, Any]) -> str | None:
    cursor = message.get("cursor")
    return cursor if isinstance(cursor, str) else None
