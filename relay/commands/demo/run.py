"""The demo: a throwaway Postgres, a few writers, the relay, and a subscriber that shows what it receives.

Rules:
- Everything is real. The writers use plain SQL and know nothing of the relay. The subscriber and the board page are
  ordinary clients on a WebSocket, which know only what they were sent; the page writes through tasks.py.
- Signals only request a stop, so Ctrl-C at any moment cleans up in the same way.
- Only this machine can connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any, Final

import click

from relay.commands.demo import tasks, writers
from relay.commands.demo.subscriber import subscribe
from relay.commands.demo.writers import DemoError
from relay.config import Settings
from relay.daemon import serve
from relay.postgres.embedded import HOST, EmbeddedPostgres, free_port

SUBSCRIBE: Final = '{"type":"subscribe","boardId":"default"}'

GUEST_TASK: Final = "task-101"
"""The task that the newcomer is invited to change. No writer touches it."""


async def run(settings: Settings, postgres_port: int | None) -> None:
    """Show the demo until SIGINT or SIGTERM.

    Of the settings, only the ports are used. Raises DemoError, StartError, InstallError or EmbeddedPostgresError.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    _forget_other_databases()
    _require_free_ports(settings, postgres_port)
    postgres = EmbeddedPostgres(port=postgres_port)
    settings = _local(settings, postgres.dsn)
    click.secho("Starting Postgres in a temporary folder …", dim=True)
    # This blocks the event loop for a second or two, on purpose: a signal is then handled when there is a Postgres to
    # stop, and not while it is being created.
    with postgres:
        await writers.prepare(postgres.dsn)
        desk = tasks.Writer(postgres.dsn)
        async with (
            contextlib.aclosing(desk),
            serve.running(settings, tasks.PATH, desk.routes()) as (feed_task, _),
        ):
            invitation = _invitation(postgres)
            _show_header(invitation, settings)
            writing = [writers.write(postgres.dsn) for _ in range(writers.WRITERS)]
            await _until_one_ends(feed_task, stop.wait(), subscribe(settings.WS_PORT, invitation), *writing)
        click.secho("\nStopping …", dim=True)
    click.echo("Stopped: Postgres and its folder are gone.")


def _local(settings: Settings, dsn: str) -> Settings:
    """Return the settings for this database and this machine."""
    return settings.model_copy(
        update={
            "DATABASE_URL": dsn,
            "WS_HOST": HOST,
            "WS_PORT": settings.WS_PORT or free_port(),
            "HEALTH_PORT": settings.HEALTH_PORT or free_port(),
            # All connections are from this machine, and a page that is reloaded often is not a flood.
            "WS_RATE_LIMIT_PER_CLIENT": 0,
            "WS_RATE_LIMIT_TOTAL": 0,
        }
    )


def _forget_other_databases() -> None:
    """Remove libpq's variables, which could redirect connections to the user's own database."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _require_free_ports(settings: Settings, postgres_port: int | None) -> None:
    """Check the ports before Postgres is started, which takes a second. Raises DemoError."""
    wanted = {
        "--ws-port": settings.WS_PORT,
        "--health-port": settings.HEALTH_PORT,
        "--postgres-port": postgres_port or 0,
    }
    with contextlib.ExitStack() as held:
        for option, port in wanted.items():
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like the real listeners
            try:
                probe.bind((HOST, port))
                probe.listen()  # otherwise two options could have the same port
            except OSError as ex:
                raise DemoError(f"cannot use port {port}: {ex.strerror}: choose another with {option}") from ex


async def _until_one_ends(feed_task: asyncio.Task[None], *parts: Coroutine[Any, Any, object]) -> None:
    """Run the parts until one of them or the feed ends, stop the others, and raise the error, if any."""
    tasks = [asyncio.create_task(part) for part in parts]
    done, _ = await asyncio.wait({feed_task, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


# The introduction -------------------------------------------------------------------------------------------


def _invitation(postgres: EmbeddedPostgres) -> str:
    """Return a command that changes a task, to be pasted into another terminal."""
    psql = "psql" if shutil.which("psql") else shlex.quote(str(postgres.bin / "psql"))
    update = f"update tasks set title = 'Hello' where id = '{GUEST_TASK}'"  # a constant
    return f'{psql} "{postgres.dsn}" -c "{update}"'


def _show_header(invitation: str, settings: Settings) -> None:
    url = f"ws://localhost:{settings.WS_PORT}"
    click.echo(f"\n{click.style('relay demo', bold=True)}: a few writers, a Postgres, the relay, a subscriber.")
    click.echo("What it receives is shown below. Ctrl-C ends it all and leaves nothing behind.\n")
    _show_advice(
        "Open the board in two windows, drag a card in one, and see it move in the other:",
        f"http://localhost:{settings.HEALTH_PORT}/",
    )
    _show_advice("Change a task yourself, in another terminal, and see it arrive here:", invitation)
    _show_advice(
        "Subscribe yourself: connect with one of the first two, then send the third:",
        f"wscat -c {url}",
        f"{shlex.quote(sys.executable)} -m websockets {url}",
        SUBSCRIBE,
    )
    _show_advice("Ask the relay how it is:", f"curl http://localhost:{settings.HEALTH_PORT}/health")


def _show_advice(why: str, *lines: str) -> None:
    click.echo(why)
    for line in lines:
        click.secho(f"  {line}", fg="cyan")
    click.echo()
