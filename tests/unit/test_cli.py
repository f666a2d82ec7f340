"""The command line: a command loads what it needs, and no more."""

from __future__ import annotations

import gc
import subprocess
import sys

import click

from relay.commands.cli import cli

COMMANDS = cli.list_commands(click.Context(cli))


def test_every_command_is_where_the_group_says() -> None:
    commands = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}

    assert len(COMMANDS) == 9
    assert [name for name, command in commands.items() if command is None or command.name != name] == []


def test_large_libraries_are_loaded_by_those_alone_that_need_them() -> None:
    """Only what serves HTTP loads a server, and only where tokens are signed is there cryptography."""
    code = """if True:
        import sys
        import relay.daemon.child
        from relay.auth.tokens import Access, static_tokens
        from relay.commands.cli import cli
        for command in ("sql", "schema", "tail"):
            cli([command, "--help"], standalone_mode=False)
        Access(static_tokens(["token"], ""))
        sys.exit(len({"aiohttp", "jwt"} & sys.modules.keys()))"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert finished.returncode == 0, finished.stderr


def test_what_a_command_loads_is_never_searched_for_garbage() -> None:
    gc.unfreeze()

    cli.get_command(click.Context(cli), "sql")

    assert gc.isenabled()
    assert id(cli) not in map(id, gc.get_objects())
