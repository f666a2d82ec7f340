"""The command line: `relay serve`, `publish`, `check`, `tail`, `status`, `schema`, `demo`, `sql` and `bench`.

Rules:
- A user's mistake is one line on standard error and exit code 1 or 2, never a traceback.
- Every setting is also an option, and `--help` names its variable. An option wins over the environment, which wins
  over a `.env` file in the working folder.
- Each command has its own file or folder, imported when it is run.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import click
import dotenv

import relay
from relay.commands.lazy import LazyGroup

STDERR: Final = 2

ENV_FILE: Final = ".env"
"""Name of the file that is read from the working folder, and from no other."""


def main() -> None:
    """Run the command line."""
    _take_standard_files()
    try:
        # Into the environment, because libpq reads its own variables there.
        dotenv.load_dotenv(ENV_FILE)
    except (OSError, UnicodeDecodeError) as ex:
        reason = ex.strerror if isinstance(ex, OSError) else "it is not UTF-8"
        click.echo(f"Error: {ENV_FILE}: {reason}: expected a file of NAME=value lines, in UTF-8", err=True)
        sys.exit(1)
    cli(prog_name="relay")


def _take_standard_files() -> None:
    """Open standard files that are closed, so that no other file or socket gets their number."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(opened)


@click.group(
    cls=LazyGroup,
    commands_at={
        "bench": "relay.commands.bench.command:bench",
        "check": "relay.commands.check.command:check",
        "demo": "relay.commands.demo.command:demo",
        "publish": "relay.commands.publish:publish",
        "schema": "relay.commands.schema.command:schema",
        "serve": "relay.commands.serve:serve",
        "sql": "relay.commands.sql:sql",
        "status": "relay.commands.status:status",
        "tail": "relay.commands.tail.command:tail",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(relay.__version__)
def cli() -> None:
    """Push every committed change of a Postgres table to WebSocket subscribers."""
