"""A group of commands, each of which is imported when it is run or its help is shown.

It is the pattern of Click's documentation, "Lazily Loading Subcommands": nobody waits for a web server to read SQL.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import click


class LazyGroup(click.Group):
    """A group of `commands_at`: where each command is, by its name, like `relay.commands.serve:serve`."""

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
    """Import a module without the garbage collector, for a third of a command's start was its search for garbage.

    What is imported stays until the process ends, so the collector never searches it.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()
