"""A group of commands, each of which is imported when it is run or its help is shown.

This is the pattern "Lazily Loading Subcommands" of Click's documentation: `relay sql` does not import a web server.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import click


class LazyGroup(click.Group):
    """A group of `commands_at`: the module and name of each command, like `relay.commands.serve:serve`."""

    def __init__(self, *args: Any, commands_at: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._commands_at = commands_at or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._commands_at])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._commands_at:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._commands_at[cmd_name].partition(":")
        command = getattr(_imported(module), name)
        assert isinstance(command, click.Command)
        return command


def _imported(name: str) -> ModuleType:
    """Import a module without garbage collection, which took a third of a command's start.

    Modules stay until the process ends, so the collector need not examine them later either.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()
