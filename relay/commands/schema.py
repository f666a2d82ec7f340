"""`relay schema`: the messages, for machines."""

from __future__ import annotations

from typing import get_args

import click

from relay.commands import terminal
from relay.model.schema import Format, text


@click.command()
@click.option(
    "--format",
    "its_format",
    type=click.Choice(get_args(Format)),
    default="json-schema",
    show_default=True,
    help="JSON Schema 2020-12, or AsyncAPI 3.0 as JSON",
)
def schema(its_format: Format) -> None:
    """Print the contract for machines: all messages that clients send and receive."""
    with terminal.quiet_end():
        click.echo(text(its_format), nl=False)
