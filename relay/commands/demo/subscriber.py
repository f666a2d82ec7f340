"""The demo's subscriber: follows the board with the client library, shows each change, and sometimes the board."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import click

from relay import client
from relay.client import Change, Task
from relay.commands.terminal import TYPE_COLOURS
from relay.postgres.embedded import HOST

MESSAGES_BETWEEN_BOARDS: Final = 25
"""Number of messages after which the board is shown again, because it has scrolled off the screen."""

TASKS_SHOWN_PER_LANE: Final = 8
TITLE_CHARACTERS: Final = 26
"""Width of the column of titles; a longer title pushes the rest to the right."""

VALUE_CHARACTERS: Final = 40
"""Maximum length of a value; a longer one is cut."""


_LANE_COLOURS: Final = {
    "backlog": "bright_blue",
    "todo": "cyan",
    "in_progress": "yellow",
    "done": "green",
    "recovery": "red",
}


async def subscribe(port: int, invitation: str) -> None:
    """Follow the board as any client does, and show each change, forever."""
    # A proxy could not reach this machine.
    async with client.connect(f"ws://{HOST}:{port}", proxy=False) as relay:
        board = await relay.subscribe("default")
        since_shown = 0
        async for change in board:
            kind = click.style(f"{change.type:12}", fg=TYPE_COLOURS.get(change.type))
            click.echo(f"{_dim(time.strftime('%H:%M:%S'))}  {kind}  {_summary(change)}")
            since_shown += 1
            due = since_shown >= MESSAGES_BETWEEN_BOARDS and change.type != "task.moved"  # its update comes next
            if due:
                click.echo(f"\nThe board now, as those messages made it. {_bold('Yours to change:')}")
                click.secho(f"  {invitation}", fg="cyan")
            if due or change.type == "board.sync":
                click.echo("\n" + "\n".join(_lines(board)) + "\n")
                since_shown = 0


def _summary(change: Change) -> str:
    """Describe a change in words."""
    match change:
        case Change(type="board.sync", tasks=tasks):
            count = len(tasks or ())
            return f"the whole board, {count} task{'' if count == 1 else 's'}"
        case Change(before=None, task=dict(task)):
            return f"{_title(task)}  in {_lane(task['lane'])}  {_details(task)}"
        case Change(type="task.moved", before=dict(before)):
            return f"{_title(before)}  {_lane(change.from_lane)} → {_lane(change.to_lane)}"
        case Change(before=dict(before), changes=dict(changes)):
            return f"{_title(before)}  {_described(before, changes)}"
        case Change(before=dict(before)):
            return f"{_title(before)}  {_dim('was in')} {_lane(before['lane'])}"
    return ""


def _lines(board: client.Board) -> Iterator[str]:
    """Draw the board: each lane with its number of tasks, and the tasks."""
    for lane, tasks in board.lanes.items():
        names = [f"{_dim(_text(task['id']))}  {_title(task)}  {_details(task)}" for task in tasks]
        if len(names) > TASKS_SHOWN_PER_LANE:
            names[TASKS_SHOWN_PER_LANE:] = [_dim(f"and {len(names) - TASKS_SHOWN_PER_LANE} more")]
        heading = f"  {_lane(lane, 12)}{len(tasks):>3}"
        for name in names or [""]:
            yield f"{heading}   {name}".rstrip()
            heading = " " * 17


def _described(task: Task, changes: Task) -> str:
    """Describe the changed columns; if `task.moved` has announced their values before, only name them."""
    parts = []
    for name, value in changes.items():
        old = task.get(name)
        if name == "title":  # the line begins with the old title
            parts.append(f"title → {_bold(_text(value))}")
        elif name != "updatedAt" and value != old:
            parts.append(f"{name} → {_text(value)}" if old is None else f"{name} {_text(old)} → {_text(value)}")
    return "  ".join(parts) or _dim(", ".join(changes))


def _title(task: Task) -> str:
    return _bold(f"{_text(task.get('title', task['id'])):{TITLE_CHARACTERS}}")


def _details(task: Task) -> str:
    hours = task.get("estimatedHours")
    found = [task.get("priority"), hours if hours is None else f"{hours} h", task.get("status")]
    return _dim(" · ".join(_text(value) for value in found if value is not None))


def _lane(lane: Any, width: int = 0) -> str:
    return click.style(f"{_text(lane):{width}}", fg=_LANE_COLOURS.get(lane, "magenta"))


def _bold(text: str) -> str:
    return click.style(text, bold=True)


def _dim(text: str) -> str:
    return click.style(text, dim=True)


def _text(value: object) -> str:
    """Format any value for a part of a line, without control characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"
