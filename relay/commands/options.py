"""Shared by the commands: settings as options, errors in one line, and the start of the log."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import click
import structlog

from relay import config, logs
from relay.config import SETTINGS

log = structlog.get_logger()

OF_SERVE: Final = tuple(name for name, setting in SETTINGS.items() if setting.is_of("serve"))
"""Settings of `relay serve` and `relay check`."""

OF_PUBLISH: Final = tuple(name for name, setting in SETTINGS.items() if setting.is_of("publish"))
"""Settings of `relay publish`."""


def settings_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for each of these settings that has one."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed([SETTINGS[name] for name in names if SETTINGS[name].option]):
            default = f"; default: {setting.default}" if setting.default else ""
            command = click.option(
                *filter(None, (setting.option, setting.short)),
                setting.name,
                metavar="VALUE",
                help=f"{setting.meaning}; {setting.allowed}  [env var: {setting.name}{default}]",
            )(command)
        return command

    return decorate


def start_log(settings: config.Settings) -> None:
    """Start the log, with a warning about each variable that resembles a setting, misspelt."""
    logs.start(settings.LOG_LEVEL)
    for name, like in config.misspelt(os.environ):
        log.warning("relay.unknown_setting", setting=name, problem=f"{name} is no setting: did you mean {like}?")


@contextlib.contextmanager
def one_line_errors(*errors: type[Exception]) -> Iterator[None]:
    """End the command with one line and exit code 1 for a SettingsError or one of these errors."""
    reported: tuple[type[Exception], ...] = (config.SettingsError, *errors)
    try:
        yield
    except reported as ex:
        raise click.ClickException(str(ex)) from None
