"""`relay schema`."""

from __future__ import annotations

import asyncio
from typing import Final, Literal, cast, get_args

import click

from relay.commands import terminal
from relay.commands.options import one_line_errors, settings_options
from relay.commands.schema import languages
from relay.commands.schema.columns import read
from relay.config import read as read_settings
from relay.model import schema as messages
from relay.postgres.install import InstallError

Choice = Literal["json-schema", "asyncapi", "typescript", "python"]

_OF_MESSAGES: Final = get_args(messages.Format)
_OF_TASKS: Final = tuple(languages.PRINTED)


@click.command()
@click.option("--table", metavar="TABLE", help="a watched table, like public.tasks: print the type of its tasks")
@click.option(
    "--format",
    "its_format",
    type=click.Choice(get_args(Choice)),
    default="json-schema",
    show_default=True,
    help="JSON Schema 2020-12; of messages also AsyncAPI 3.0 as JSON, of tasks also TypeScript or Python",
)
@settings_options("DATABASE_URL")
def schema(table: str | None, its_format: Choice, **options: str | None) -> None:
    """Print the schema of all messages that clients send and receive.

    With --table, print the type of the tasks of one table: its visible columns, as the relay sends them.
    """
    allowed = _OF_MESSAGES if table is None else _OF_TASKS
    if its_format not in allowed:
        raise click.UsageError(
            f"--format {its_format} is {'for' if table is None else 'not for'} tasks of a --table: "
            f"expected {' or '.join(allowed)}"
        )
    with one_line_errors(InstallError), terminal.quiet_end():
        if table is None:
            click.echo(messages.text(cast(messages.Format, its_format)), nl=False)
        else:
            url = read_settings(options, ["DATABASE_URL"]).DATABASE_URL
            task = asyncio.run(read(url, table))
            click.echo(languages.PRINTED[its_format](task), nl=False)
