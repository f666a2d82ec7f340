"""What commands share: settings as options, errors in one line, the beginning of the log."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import click
import structlog

from relay import config, logs

log = structlog.get_logger()

_SHORT: Final[Mapping[str, str]] = {"WS_WORKERS": "--workers", "SERVE_FROM": "--from", "PUBLISH_TO": "--to"}
"""Settings that have a second, shorter option."""

OF_SERVE: Final = tuple(name for name in config.Settings.model_fields if name not in config.PUBLISHERS)
"""Settings of `relay serve` and `relay check`."""

OF_PUBLISH: Final = (
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
"""Settings of `relay publish`."""


def settings_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make an option of each setting that is named, in the order of their definition."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(config.Settings.model_fields.items()):
            if name in config.NO_OPTION or name not in names:
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


def load(options: Mapping[str, str | None], *, secrets: bool = False) -> config.Settings:
    """Read the settings of a command from its options, `secrets` also from the environment. Raises SettingsError."""
    given = {name: value for name, value in options.items() if value is not None}
    if secrets:
        given |= {name: os.environ[name] for name in config.NO_OPTION if name in os.environ}
    return config.load(given)


def start_log(settings: config.Settings) -> None:
    """Log from now on, and begin with a warning about each variable that looks like a misspelt setting."""
    logs.start(settings.LOG_LEVEL)
    for name, like in config.misspelt(os.environ):
        log.warning("relay.unknown_setting", setting=name, problem=f"{name} is no setting: did you mean {like}?")


@contextlib.contextmanager
def one_line_errors(*errors: type[Exception]) -> Iterator[None]:
    """End the command with one line, and exit code 1, for a setting that is not allowed and for these errors."""
    told: tuple[type[Exception], ...] = (config.SettingsError, *errors)
    try:
        yield
    except told as ex:
        raise click.ClickException(str(ex)) from None
