"""The command line: `relay serve`, `publish`, `check`, `tail`, `status`, `schema`, `demo`, `sql` and `bench`.

Rules:
- A user's mistake is one line on standard error and exit code 1 or 2, never a traceback.
- Every setting is an option too, and `--help` names its variable; an option wins over the environment, and this
  over a `.env` file in the working folder.
- What only some commands need is loaded when one of them runs: nobody waits for a web server to read SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, get_args

import click
import dotenv
import structlog

import relay
from relay import config, logs
from relay.commands import terminal
from relay.model import contract
from relay.postgres import install


def _lazy(name: str) -> ModuleType:
    """Return a module of the relay that is loaded when something in it is first asked for."""
    full = f"{relay.__name__}.{name}"
    if full not in sys.modules:
        spec = importlib.util.find_spec(full)
        assert spec
        assert spec.loader
        spec.loader = importlib.util.LazyLoader(spec.loader)
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


if TYPE_CHECKING:
    from relay.commands import doctor, overview, tail
    from relay.commands.bench import bench, write_report, write_tax
    from relay.commands.demo import demo
    from relay.daemon import daemon, worker
    from relay.postgres import embedded
else:
    _names = (
        "commands.bench.bench",
        "daemon.daemon",
        "commands.demo.demo",
        "commands.doctor",
        "postgres.embedded",
        "commands.overview",
        "commands.tail",
        "daemon.worker",
        "commands.bench.write_report",
        "commands.bench.write_tax",
    )
    bench, daemon, demo, doctor, embedded, overview, tail, worker, write_report, write_tax = map(_lazy, _names)

log = structlog.get_logger()

_SHORT: Final[Mapping[str, str]] = {"WS_WORKERS": "--workers", "SERVE_FROM": "--from", "PUBLISH_TO": "--to"}
"""Settings that have a second, shorter option."""


STDERR: Final = 2

ENV_FILE: Final = ".env"
"""Read from the working folder, and from no other."""


def main() -> None:
    """Run the command line."""
    _take_standard_files()
    try:
        dotenv.load_dotenv(ENV_FILE)
    except (OSError, UnicodeDecodeError) as ex:
        reason = ex.strerror if isinstance(ex, OSError) else "it is not UTF-8"
        click.echo(f"Error: {ENV_FILE}: {reason}: expected a file of NAME=value lines, in UTF-8", err=True)
        sys.exit(1)
    cli(prog_name="relay")


def _take_standard_files() -> None:
    """Open standard files that are closed, lest the next file or socket be taken for one of them."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(opened)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(relay.__version__)
def cli() -> None:
    """Push every committed change of a Postgres table to WebSocket subscribers."""


def _settings_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an option of each setting named, or of all."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(config.Settings.model_fields.items()):
            if name in config.NO_OPTION or (names and name not in names):
                continue
            command = click.option(
                "--" + name.lower().replace("_", "-"),
                *([_SHORT[name]] if name in _SHORT else []),
                name,
                envvar=name,
                show_envvar=True,
                metavar="VALUE",
                help=f"{field.description}; {config.ALLOWED[name]}"
                + (f"  [default: {str(field.default).lower()}]" if field.default != "" else ""),
            )(command)
        return command

    return decorate


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (config.SettingsError, install.InstallError) as ex:
        raise click.ClickException(str(ex)) from None
    except (
        bench.BenchError,
        demo.DemoError,
        embedded.EmbeddedPostgresError,
        overview.AddressError,
        tail.TailError,
        worker.StartError,
    ) as ex:
        raise click.ClickException(str(ex)) from None


def _given(options: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _secrets() -> dict[str, str]:
    return {name: os.environ[name] for name in config.NO_OPTION if name in os.environ}


def _start_log(settings: config.Settings) -> None:
    logs.start(settings.LOG_LEVEL)
    for name, like in config.misspelt(os.environ):
        log.warning("relay.unknown_setting", setting=name, problem=f"{name} is no setting: did you mean {like}?")


_SERVERS: Final = tuple(name for name in config.Settings.model_fields if name not in config.PUBLISHERS)
_PUBLISHERS: Final = (
    *config.PUBLISHERS,
    "DATABASE_URL",
    "NATS_STREAM",
    "NATS_DOMAIN",
    "NATS_CREDENTIALS",
    "NATS_CA",
    "NATS_CERT",
    "NATS_KEY",
    "WS_HOST",
    "HEALTH_PORT",
    "HEALTH_BUDGET",
    "LOG_LEVEL",
)


@cli.command()
@_settings_options(*_SERVERS)
def serve(**options: str | None) -> None:
    """Run the daemon until Ctrl-C or SIGTERM; a second one cuts its clients off, and exit code 1 says so."""
    with _one_line_errors():
        settings = config.load(_given(options) | _secrets())
        _start_log(settings)
        if not asyncio.run(daemon.serve(settings)):
            sys.exit(1)


@cli.command()
@_settings_options(*_PUBLISHERS)
def publish(**options: str | None) -> None:
    """Publish all boards to NATS JetStream, for relays that serve from there, until Ctrl-C or SIGTERM."""
    with _one_line_errors():
        settings = config.load(_given(options))
        _start_log(settings)
        asyncio.run(daemon.publish(settings))


@cli.command()
@_settings_options(*_SERVERS)
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
@click.pass_context
def check(context: click.Context, /, as_json: bool, **options: str | None) -> None:
    """Look at all that the daemon needs, and say how to mend what is not well.

    To be run where the daemon runs, with its settings. Exit code 1 if anything is wrong, 2 if a setting is not
    allowed; warnings do no harm.
    """
    logs.start("error")
    try:
        settings = config.load(_given(options) | _secrets())
    except config.SettingsError as ex:
        raise click.BadParameter(str(ex)) from None
    context.exit(asyncio.run(_show(settings, as_json=as_json)))


async def _show(settings: config.Settings, *, as_json: bool) -> int:
    """Print the findings, for people as they come; return the exit code."""
    findings = []
    async for finding in doctor.run(settings):
        findings.append(finding)
        if not as_json:
            _show_finding(finding)
    counted = Counter(finding.status for finding in findings)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        click.echo("relay check: " + ", ".join(f"{count} {status}" for status, count in counted.items()))
    return 1 if counted["failed"] else 0


_COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


def _show_finding(finding: doctor.Finding) -> None:
    status = click.style(f"{finding.status:9}", fg=_COLOURS[finding.status])
    click.echo(f"{status}{finding.check:{doctor.LONGEST_NAME + 2}}{finding.found}")
    if finding.mend:
        click.echo(f"{'':{doctor.LONGEST_NAME + 11}}mend: {finding.mend}")


@cli.command("tail")
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
    help="file of the token, read at each connection; without it the variable RELAY_TOKEN counts",
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
    help="only tasks in this lane, or to or from it; may be repeated",
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
    help="go on where the last run with this file ended",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="end after so many messages")
def tail_command(
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
    """Watch a BOARD: print its messages as they come, until Ctrl-C."""
    wanted = tail.Filter(frozenset(types), frozenset(lanes), frozenset(tasks), text, first_board=not no_sync)
    colours = terminal.has_colours(sys.stdout)

    def show(message: tail.Message) -> None:
        if as_json:
            click.echo(terminal.harmless(message.json.decode()).encode())
        else:
            click.echo(tail.line(message, datetime.now().astimezone(), colours=colours), color=colours)

    def tell(line: str) -> None:
        click.secho(line, err=True, dim=True, color=terminal.has_colours(sys.stderr))

    with _one_line_errors(), bench.interrupted_once(), terminal.quiet_end():
        target = tail.Target(url, board, tail.token_from(token_file, os.environ.get("RELAY_TOKEN")))
        cursors = tail.CursorFile(cursor_file) if cursor_file else None
        asyncio.run(tail.run(target, tail.Output(wanted, show, tell, count, cursors)))


@cli.command("status")
@click.option(
    "--url",
    default="http://localhost:4001",
    envvar="RELAY_HEALTH_URL",
    show_envvar=True,
    show_default=True,
    help="where the relay's HEALTH_PORT is",
)
@click.option("--json", "as_json", is_flag=True, help="print the figures as one JSON object in a line")
@click.option(
    "--watch", type=click.FloatRange(0.1, 86_400), metavar="SECONDS", help="show them again and again, with rates"
)
@click.pass_context
def status_command(context: click.Context, /, url: str, as_json: bool, watch: float | None) -> None:
    """Show how a running relay is. Exit code 0 if healthy and ready, 1 if not, 2 if there is no answer."""
    colours = terminal.has_colours(sys.stdout)
    full_screen = watch is not None and not as_json and sys.stdout.isatty()
    code = 0
    with (
        _one_line_errors(),
        bench.interrupted_once(),
        terminal.quiet_end(),
        terminal.pages(full_screen=full_screen) as show_page,
    ):

        def show(found: overview.Overview | overview.NoAnswer) -> None:
            if isinstance(found, overview.NoAnswer) and not full_screen:
                click.echo(f"Error: {found}", err=True)
            elif isinstance(found, overview.NoAnswer):
                show_page([str(found)])
            elif as_json:
                click.echo(overview.as_json(found))
            else:
                show_page(overview.screen(found, url, f"{datetime.now().astimezone():%H:%M:%S}", colours=colours))

        code = asyncio.run(overview.watch(url, watch, show))
    context.exit(code)


@cli.command("schema")
@click.option(
    "--format",
    "its_format",
    type=click.Choice(get_args(contract.Format)),
    default="json-schema",
    show_default=True,
    help="JSON Schema 2020-12, or AsyncAPI 3.0 as JSON",
)
def schema_command(its_format: contract.Format) -> None:
    """Print the contract for machines: all messages that clients send and receive."""
    with terminal.quiet_end():
        click.echo(contract.text(its_format), nl=False)


@cli.command("demo")
@_settings_options("WS_PORT", "HEALTH_PORT")
@click.option(
    "--postgres-port",
    type=click.IntRange(1, 65535),
    metavar="VALUE",
    help="port of the throwaway Postgres; a port from 1 to 65535  [default: any free one]",
)
def demo_command(postgres_port: int | None, **options: str | None) -> None:
    """Show a living board, from a throwaway Postgres, until Ctrl-C."""
    logs.start("warning")
    with _one_line_errors():
        asyncio.run(demo.run(config.load(_given(options)), postgres_port))


@cli.group()
def sql() -> None:
    """Install, change or remove what the relay needs in the database."""


@sql.command("print")
@click.argument("name", type=click.Choice(install.FILES))
def sql_print(name: str) -> None:
    """Print an SQL file, to review it or to run it with psql."""
    click.echo(install.text(name), nl=False)


def _add_sql_command(name: str, summary: str) -> None:
    @sql.command(name, help=summary)
    @_settings_options("DATABASE_URL")
    def command(**options: str | None) -> None:
        with _one_line_errors():
            install.run(config.load(_given(options)).DATABASE_URL, name)
        click.echo(f"relay sql {name}: done")


_add_sql_command("tasks", "Create the tasks table, for a database that has none.")
_add_sql_command("install", "Create or upgrade schema relay. Feeds nothing until a table is watched.")
_add_sql_command("roles", "Create or complete role relay_daemon, with the least rights for the daemon.")
_add_sql_command("uninstall", "Remove the triggers and schema relay. Touches no user data.")


@sql.command("diff")
@_settings_options("DATABASE_URL")
@click.pass_context
def sql_diff(context: click.Context, /, **options: str | None) -> None:
    """Show what `relay sql install` would change. Exit code 1 if anything."""
    with _one_line_errors():
        lines = install.diff(config.load(_given(options)).DATABASE_URL)
    for line in lines:
        click.echo(line)
    context.exit(1 if lines else 0)


def _patience_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--patience",
        type=click.FloatRange(0, 86_400),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="how long to try for the table's lock, a tenth of a second at a time",
    )(command)


@sql.command("watch")
@click.argument("table")
@click.option("--id", "id_column", help="column that is the key by itself  [default: id]")
@click.option("--board", help="column that names a task's board  [default: board_id]")
@click.option("--lane", help="column that names a task's lane  [default: lane]")
@click.option("--hide", "hidden", multiple=True, help="column that must never leave the database; may be repeated")
@click.option(
    "--order-by",
    multiple=True,
    help="order of tasks in a lane, like 'position desc'; may be repeated  [default: created_at if there is one]",
)
@_patience_option
@_settings_options("DATABASE_URL")
def sql_watch(
    table: str,
    id_column: str | None,
    board: str | None,
    lane: str | None,
    hidden: tuple[str, ...],
    order_by: tuple[str, ...],
    patience: float,
    **options: str | None,
) -> None:
    """Start feeding TABLE, like public.tasks, or change how it is fed.

    Where TABLE is watched already, what is not given stays as it is.
    """
    with _one_line_errors():
        url = config.load(_given(options)).DATABASE_URL
        install.watch(
            url,
            table,
            id_column=id_column,
            board=board,
            lane=lane,
            hidden=hidden,
            order_by=order_by,
            patience=timedelta(seconds=patience),
        )
    click.echo(f"relay sql watch: {table} is watched")


@sql.command("unwatch")
@click.argument("table")
@_patience_option
@_settings_options("DATABASE_URL")
def sql_unwatch(table: str, patience: float, **options: str | None) -> None:
    """Stop feeding TABLE."""
    with _one_line_errors():
        install.unwatch(config.load(_given(options)).DATABASE_URL, table, timedelta(seconds=patience))
    click.echo(f"relay sql unwatch: {table} is not watched")


@cli.group("bench", invoke_without_command=True)
@_settings_options("DATABASE_URL")
@click.option(
    "--subscribers", type=click.IntRange(1, 50_000), default=200, show_default=True, help="clients of one board"
)
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=5, show_default=True, help="length of each phase"
)
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
@click.pass_context
def bench_command(
    context: click.Context, /, subscribers: int, seconds: float, as_json: bool, **options: str | None
) -> None:
    """Measure commit to client on your own server, in a scratch database, and remove that again."""
    if context.invoked_subcommand:
        return
    with _one_line_errors():
        url = config.load(_given(options)).DATABASE_URL
        result = bench.run(url, subscribers, seconds, lambda text: click.echo(text, err=True))
    click.echo(bench.as_json(result) if as_json else bench.table(result))


@bench_command.command("writers")
@_settings_options("DATABASE_URL")
@click.option(
    "--writers",
    type=click.IntRange(1, 1000),
    multiple=True,
    default=(1, 8, 32),
    show_default=True,
    help="how many write at once; may be repeated",
)
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=2, show_default=True, help="length of each run")
@click.option("--rounds", type=click.IntRange(1, 100), default=5, show_default=True, help="runs of each table")
@click.option(
    "--rows", type=click.IntRange(1, 1_000_000), default=100_000, show_default=True, help="rows of one statement"
)
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
def bench_writers(
    writers: tuple[int, ...], seconds: float, rounds: int, rows: int, as_json: bool, **options: str | None
) -> None:
    """Measure what the triggers cost your server's writers, in a scratch database, and remove that again."""
    with _one_line_errors():
        url = config.load(_given(options)).DATABASE_URL
        tax = write_tax.run(url, writers, seconds, rounds, rows, lambda text: click.echo(text, err=True))
    click.echo(write_report.as_json(tax) if as_json else write_report.table(tax))
