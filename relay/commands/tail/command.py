"""`relay tail`."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import datetime
from pathlib import Path

import click
from rich.text import Text

from relay.commands import terminal
from relay.commands.options import one_line_errors
from relay.commands.tail import follow
from relay.commands.tail.messages import Message, TailError
from relay.commands.tail.show import Filter, line
from relay.text import harmless


@click.command()
@click.argument("board")
@click.option(
    "--url",
    default="ws://localhost:4002",
    envvar="RELAY_URL",
    show_envvar=True,
    show_default=True,
    help="the relay's WebSocket endpoint",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="file with the token, read for each connection; by default, the variable RELAY_TOKEN is used",
)
@click.option("--json", "as_json", is_flag=True, help="print messages as they came, each in one line")
@click.option(
    "--type", "types", multiple=True, metavar="TYPE", help="only this type, like task.moved; may be repeated"
)
@click.option(
    "--lane",
    "lanes",
    multiple=True,
    metavar="LANE",
    help="only tasks in this lane, or moving to or from it; may be repeated",
)
@click.option("--id", "tasks", multiple=True, metavar="ID", help="only this task; may be repeated")
@click.option(
    "--match", "text", default="", metavar="TEXT", help="only changes with this in the id, a lane or a value"
)
@click.option("--no-sync", is_flag=True, help="leave the first board out")
@click.option(
    "--cursor-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="continue where the last run with this file ended",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="end after N messages")
def tail(
    board: str,
    url: str,
    token_file: Path | None,
    as_json: bool,
    types: tuple[str, ...],
    lanes: tuple[str, ...],
    tasks: tuple[str, ...],
    text: str,
    no_sync: bool,
    cursor_file: Path | None,
    count: int | None,
) -> None:
    """Watch a BOARD: print its messages as they arrive, until Ctrl-C."""
    wanted = Filter(frozenset(types), frozenset(lanes), frozenset(tasks), text, first_board=not no_sync)
    console, errors = terminal.console(), terminal.console(sys.stderr)

    def show(message: Message) -> None:
        if as_json:
            click.echo(harmless(message.json.decode()).encode())
        else:
            console.print(line(message, datetime.now().astimezone()))

    def tell(state: str) -> None:
        errors.print(Text(state, "dim"))

    with one_line_errors(TailError), terminal.interrupted_once(), terminal.quiet_end():
        target = follow.Target(url, board, follow.token_from(token_file, os.environ.get("RELAY_TOKEN")))
        cursors = follow.CursorFile(cursor_file) if cursor_file else None
        asyncio.run(follow.run(target, follow.Output(wanted, show, tell, count, cursors)))
