"""The command line: a command loads what it needs, and no more."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from relay.commands.cli import cli

COMMANDS = cli.list_commands(click.Context(cli))


def test_every_command_is_where_the_group_says() -> None:
    commands = {name: cli.get_command(click.Context(cli), name) for name in COMMANDS}

    assert len(COMMANDS) == 9
    assert [name for name, command in commands.items() if command is None or command.name != name] == []


@pytest.mark.parametrize(("command", "unneeded"), [("sql", "aiohttp"), ("schema", "aiohttp"), ("tail", "aiohttp")])
def test_a_command_does_not_load_what_others_need(command: str, unneeded: str) -> None:
    code = f"import sys; from relay.commands.cli import cli; cli(['{command}', '--help'], standalone_mode=False)"
    finished = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('{unneeded}' in sys.modules)"], capture_output=True, check=False
    )

    assert finished.returncode == 0, finished.stderr
