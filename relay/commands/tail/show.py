"""Which messages `relay tail` shows, and how: one line each, without control characters. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from msgspec import Raw
from rich.text import Text

from relay.commands.tail.messages import Message, text_of
from relay.commands.terminal import TYPE_COLOURS
from relay.text import harmless

VALUE_CHARACTERS: Final = 60
"""Maximum length of a value; a longer one is cut, except in JSON."""


@dataclass(frozen=True)
class Filter:
    """The messages to show; an empty condition admits all.

    A board.sync is about every task, so only `types` and `first_board` exclude it.
    """

    types: frozenset[str] = frozenset()
    lanes: frozenset[str] = frozenset()
    """Admit tasks in, from or to these lanes, and tasks whose lane is unknown."""
    tasks: frozenset[str] = frozenset()
    text: str = ""
    """Admit tasks with this text in the id, a lane or a value."""
    first_board: bool = True
    """Whether to show the requested board; one that comes for a reason is shown anyway."""

    def wants(self, message: Message) -> bool:
        """Return whether to show a message."""
        if self.types and message.type not in self.types:
            return False
        if message.task is None:
            return self.first_board or message.reason is not None or message.type != "board.sync"
        return (
            (not self.tasks or message.task in self.tasks)
            and (not self.lanes or not message.lanes or not self.lanes.isdisjoint(message.lanes))
            and any(
                self.text in value for value in (message.task, *message.lanes, *map(text_of, message.values.values()))
            )
        )


def line(message: Message, at: datetime) -> Text:
    """Show a message in one line."""
    parts = [
        Text(f"{at:%H:%M:%S}.{at.microsecond // 1000:03}", "dim"),
        Text(f"{harmless(message.type):12}", TYPE_COLOURS.get(message.type, "cyan")),
    ]
    if message.type == "board.sync":
        total = sum(message.counts.values())
        parts.append(Text(f"{total} task{'' if total == 1 else 's'}", "bold"))
        parts += [Text(f"{harmless(lane)} {count}") for lane, count in message.counts.items()]
        parts += [Text(f"({harmless(message.reason)})")] if message.reason else []
    if message.task is not None:
        parts.append(Text(harmless(message.task), "bold"))
    if message.lanes:
        parts.append(Text(" → ".join(map(harmless, message.lanes))))
    parts += [Text.assemble((harmless(name), "dim"), f"={_shown(value)}") for name, value in message.values.items()]
    return Text("  ").join(parts)


def _shown(value: Raw) -> str:
    text = bytes(value).decode(errors="replace")
    return harmless(text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…")
