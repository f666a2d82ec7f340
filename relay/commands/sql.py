"""`relay sql`: runs or prints the files of sql/."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import click

from relay.commands.options import one_line_errors, settings_options
from relay.config import read
from relay.postgres import install


@click.group()
def sql() -> None:
    """Install, change or remove what the relay needs in the database."""


@sql.command("print")
@click.argument("name", type=click.Choice(install.FILES))
def sql_print(name: str) -> None:
    """Print an SQL file, to review it or to run it with psql."""
    click.echo(install.text(name), nl=False)


def _add_sql_command(name: str, summary: str) -> None:
    @sql.command(name, help=summary)
    @settings_options("DATABASE_URL")
    def command(**options: str | None) -> None:
        with one_line_errors(install.InstallError):
            install.run(read(options, ["DATABASE_URL"]).DATABASE_URL, name)
        click.echo(f"relay sql {name}: done")


_add_sql_command("tasks", "Create the tasks table, for a database that has none.")
_add_sql_command("install", "Create or upgrade schema relay. Feeds nothing until a table is watched.")
_add_sql_command("roles", "Create or complete role relay_daemon, with the least rights for the daemon.")
_add_sql_command("uninstall", "Remove the triggers and schema relay. Touches no user data.")


@sql.command("diff")
@settings_options("DATABASE_URL")
@click.pass_context
def sql_diff(context: click.Context, /, **options: str | None) -> None:
    """Show what `relay sql install` would change. Exit code 1 if anything."""
    with one_line_errors(install.InstallError):
        lines = install.diff(read(options, ["DATABASE_URL"]).DATABASE_URL)
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


@contextmanager
def _errors_in_options() -> Iterator[None]:
    """Make errors name this command's options instead of the parameters of the SQL function that it calls."""
    try:
        yield
    except install.InstallError as ex:
        options = {each.name: each for each in click.get_current_context().command.params if each.name is not None}
        raise install.InstallError(in_options(str(ex), options)) from ex


_GIVEN: Final = re.compile(r"\b(\w+) => (?:'((?:[^']|'')*)'|(true|false))(, (?=\w+ => ))?")


def in_options(text: str, options: Mapping[str, click.Parameter]) -> str:
    """Replace `parameter => value` by an option with its value, and names of parameters that are not plain words."""

    def option(found: re.Match[str]) -> str:
        name, value, flag, more = found.groups()
        if (its := options.get(name)) is None:
            return found[0]
        if flag is not None:
            return (its.opts if flag == "true" else its.secondary_opts)[0] + (" " if more else "")
        word = value.replace("''", "'")
        word = word.strip("{}") if its.multiple else word
        return f"{its.opts[0]} {word if word == '...' else shlex.quote(word)}{' ' if more else ''}"

    text = _GIVEN.sub(option, text)
    bare = [name for name in options if "_" in name]
    return re.sub(rf"\b({'|'.join(bare)})\b", lambda found: options[found[0]].opts[0], text) if bare else text


@sql.command("watch")
@click.argument("table")
@click.option("--id", "id_column", help="column that is the key by itself  [default: id]")
@click.option("--key", "key_columns", multiple=True, help="column of a composite key, instead of --id; repeated")
@click.option("--id-prefix", help="text that ids begin with, to keep them apart from other tables'; '' for none")
@click.option(
    "--as-text/--as-numbers", "as_text", default=None, help="whether numeric ids, boards and lanes are sent as text"
)
@click.option(
    "--distinct-ids/--no-distinct-ids",
    default=None,
    help="whether you know that no other table has a task with the same id on the same board",
)
@click.option("--board", "board_column", help="column with a task's board  [default: board_id]")
@click.option("--board-as", help="expression for the board, instead of --board")
@click.option("--lane", "lane_column", help="column with a task's lane  [default: lane]")
@click.option("--lane-as", help="expression for the lane, instead of --lane")
@click.option("--lanes", metavar="TABLE", help="table whose rows are the lanes, declared by `relay sql lanes`")
@click.option("--filter", help="which rows are tasks, like 'deleted_at is null'; '' for all again  [default: all]")
@click.option("--hide", "hidden", multiple=True, help="column that must never leave the database; may be repeated")
@click.option(
    "--show",
    "shown",
    multiple=True,
    help="column to show besides those three; all others, also later ones, are private; may be repeated",
)
@click.option(
    "--order-by",
    multiple=True,
    help="order of tasks in a lane, like 'position desc'; may be repeated  [default: created_at if there is one]",
)
@_patience_option
@settings_options("DATABASE_URL")
def sql_watch(table: str, patience: float, **options: Any) -> None:
    """Start feeding TABLE, like public.tasks, or change how it is fed.

    If TABLE is already watched, options that are not given stay as they are.
    """
    with one_line_errors(install.InstallError), _errors_in_options():
        settings = {name: options.pop(name) for name in install.WATCH_SETTINGS}
        install.watch(read(options, ["DATABASE_URL"]).DATABASE_URL, table, timedelta(seconds=patience), **settings)
    click.echo(f"relay sql watch: {table} is watched")


@sql.command("lanes")
@click.argument("table")
@click.option("--id", "id_column", help="column that is the key by itself  [default: id]")
@click.option("--board", "board_column", help="column with a lane's board; '' for none  [default: board_id]")
@click.option("--name", "name_column", help="column with a lane's name  [default: name]")
@click.option("--filter", help="which rows are lanes, like 'closed_at is null'; '' for all again  [default: all]")
@click.option("--order-by", multiple=True, help="order of the lanes, like 'position'; may be repeated")
@_patience_option
@settings_options("DATABASE_URL")
def sql_lanes(table: str, patience: float, **options: Any) -> None:
    """Declare that the rows of TABLE, like public.lists, are lanes. Then name it in `relay sql watch --lanes`.

    If TABLE is already declared, options that are not given stay as they are.
    """
    with one_line_errors(install.InstallError), _errors_in_options():
        settings = {name: options.pop(name) for name in install.LANES_SETTINGS}
        install.lanes(read(options, ["DATABASE_URL"]).DATABASE_URL, table, timedelta(seconds=patience), **settings)
    click.echo(f"relay sql lanes: the rows of {table} are lanes")


@sql.command("extra")
@click.argument("table")
@click.argument("name")
@click.option("--of", "related", required=True, metavar="TABLE", help="table with the data to show")
@click.option(
    "--show", "shown", multiple=True, help="column of that table to show; may be repeated  [default: count its rows]"
)
@click.option("--through", metavar="TABLE", help="table that links tasks to rows of that table")
@click.option("--order-by", multiple=True, help="order of the values, like 'position'; may be repeated")
@click.option("--task-column", help="column of a task by which the rows are found  [default: its id]")
@click.option("--key-column", help="column of the rows with the same value  [default: that of the foreign key]")
@click.option("--link-column", help="column of --through with the key of a row  [default: that of the foreign key]")
@click.option("--filter", help="rows to show or count, like 'deleted_at is null'  [default: all]")
@click.option("--link-filter", help="rows of --through that link, likewise  [default: all]")
@_patience_option
@settings_options("DATABASE_URL")
def sql_extra(table: str, patience: float, **options: Any) -> None:
    """Show data of another table on the tasks of TABLE, as a column called NAME.

    For labels, assignees or a count of comments. Replaces an extra of the same name.
    """
    with one_line_errors(install.InstallError), _errors_in_options():
        settings = {name: options.pop(name) for name in install.EXTRA_SETTINGS}
        database_url = read(options, ["DATABASE_URL"]).DATABASE_URL
        install.show_extra(database_url, table, timedelta(seconds=patience), **settings)
    click.echo(f"relay sql extra: tasks of {table} have {settings['name']}")


@sql.command("drop-extra")
@click.argument("table")
@click.argument("name")
@_patience_option
@settings_options("DATABASE_URL")
def sql_drop_extra(table: str, name: str, patience: float, **options: str | None) -> None:
    """Stop showing an extra of TABLE."""
    with one_line_errors(install.InstallError):
        install.drop_extra(read(options, ["DATABASE_URL"]).DATABASE_URL, table, name, timedelta(seconds=patience))
    click.echo(f"relay sql drop-extra: tasks of {table} have no {name}")


@sql.command("unwatch")
@click.argument("table")
@_patience_option
@settings_options("DATABASE_URL")
def sql_unwatch(table: str, patience: float, **options: str | None) -> None:
    """Stop feeding TABLE."""
    with one_line_errors(install.InstallError):
        install.unwatch(read(options, ["DATABASE_URL"]).DATABASE_URL, table, timedelta(seconds=patience))
    click.echo(f"relay sql unwatch: {table} is not watched")
