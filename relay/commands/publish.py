"""`relay publish`: the daemon that publishes the feed to NATS."""

from __future__ import annotations

import asyncio

import click

from relay import config
from relay.commands.options import OF_PUBLISH, one_line_errors, settings_options, start_log
from relay.daemon import serve as daemon
from relay.daemon.errors import StartError


@click.command()
@settings_options(*OF_PUBLISH)
def publish(**options: str | None) -> None:
    """Publish all boards to NATS JetStream, for relays that serve from there, until Ctrl-C or SIGTERM."""
    with one_line_errors(StartError):
        settings = config.read(options, OF_PUBLISH)
        start_log(settings)
        asyncio.run(daemon.publish(settings))
