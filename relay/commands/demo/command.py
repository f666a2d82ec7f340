"""`relay demo`."""

from __future__ import annotations

import asyncio

import click

from relay import logs
from relay.commands.demo.run import run
from relay.commands.demo.writers import DemoError
from relay.commands.options import one_line_errors, settings_options
from relay.config import read
from relay.daemon.errors import StartError
from relay.postgres.embedded import EmbeddedPostgresError
from relay.postgres.install import InstallError


@click.command()
@settings_options("WS_PORT", "HEALTH_PORT")
@click.option(
    "--postgres-port",
    type=click.IntRange(1, 65535),
    metavar="VALUE",
    help="port of the throwaway Postgres; a port from 1 to 65535  [default: any free one]",
)
def demo(postgres_port: int | None, **options: str | None) -> None:
    """Show a living board, from a throwaway Postgres, until Ctrl-C."""
    logs.start("warning")
    with one_line_errors(DemoError, StartError, InstallError, EmbeddedPostgresError):
        asyncio.run(run(read(options, ("WS_PORT", "HEALTH_PORT")), postgres_port))
