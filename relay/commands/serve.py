"""`relay serve`: the daemon that serves clients."""

from __future__ import annotations

import asyncio
import sys

import click

from relay import config
from relay.commands.options import OF_SERVE, one_line_errors, settings_options, start_log
from relay.daemon import serve as daemon
from relay.daemon.errors import StartError


@click.command()
@settings_options(*OF_SERVE)
def serve(**options: str | None) -> None:
    """Run the daemon until Ctrl-C or SIGTERM; a second one cuts its clients off, and exit code 1 says so."""
    with one_line_errors(StartError):
        settings = config.read(options, OF_SERVE)
        start_log(settings)
        if not asyncio.run(daemon.serve(settings)):
            sys.exit(1)
