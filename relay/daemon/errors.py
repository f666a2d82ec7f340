"""Errors at the start, in one line."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


class StartError(Exception):
    """The daemon cannot start. The text says what was found, what was expected and what to do, in one line."""


@contextlib.contextmanager
def listening_on(setting: str, host: str, port: int) -> Iterator[None]:
    """Turn an OSError into a StartError that names the address and the setting to change."""
    try:
        yield
    except OSError as ex:
        # asyncio adds the address to the system's text; errors of name resolution have their own (negative) codes.
        reason = os.strerror(ex.errno) if ex.errno and ex.errno > 0 else ex.strerror
        blamed = setting if ex.errno in {errno.EADDRINUSE, errno.EACCES} else "WS_HOST"
        raise StartError(f"cannot listen on {host}:{port}: {reason}: choose another with {blamed}") from ex


@contextlib.contextmanager
def nats_installed(setting: str) -> Iterator[None]:
    """Turn an import that fails without the `nats` extra into a StartError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as ex:
        if (ex.name or "").partition(".")[0] not in {"nats", "nkeys", "nacl"}:
            raise
        raise StartError(f"{setting}: nats-py is not installed: run pip install 'pg-change-relay[nats]'") from None
