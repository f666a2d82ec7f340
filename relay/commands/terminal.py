"""Shared by commands that print continuously: colours, pages, and a quiet end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from typing import IO, Final, NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

TYPE_COLOURS: Final[Mapping[str, str]] = {
    "board.sync": "magenta",
    "task.created": "green",
    "task.updated": "yellow",
    "task.moved": "bright_blue",
    "task.deleted": "red",
}
"""The colours of messages, by type."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `quiet_end`, because rich would end the process with exit code 1."""
        raise  # noqa: PLE0704  # rich calls this where it has caught the error


def console(file: IO[str] | None = None) -> Console:
    """Return a console that prints in colours to a terminal, and plain text to anything else; by default on stdout.

    Lines are never wrapped or highlighted automatically, and nothing in them is interpreted as markup.
    """
    return _Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def pages(to: Console, *, full_screen: bool) -> Iterator[Callable[[Sequence[Text]], None]]:
    """Yield a function that shows a page: with `full_screen` in place of the last one, otherwise below it.

    On a screen that is too small, empty lines are dropped first, then those at the end.
    """
    if not full_screen:
        before: Iterator[tuple[Text, ...]] = itertools.chain([()], itertools.repeat((Text(),)))
        yield lambda lines: to.print(*next(before), *lines, sep="\n")
        return
    with Live(console=to, screen=True, auto_refresh=False, vertical_overflow="crop") as live:

        def show(lines: Sequence[Text]) -> None:
            fitting = lines if len(lines) <= to.height else [line for line in lines if line.plain]
            for line in fitting:
                line.no_wrap, line.overflow = True, "crop"
            live.update(Group(*fitting), refresh=True)

        yield show


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, and ignore further signals, so that nothing disturbs the cleanup."""

    def interrupt(*_: object) -> NoReturn:
        ignore_signals()
        raise KeyboardInterrupt

    before = [signal.signal(signum, interrupt) for signum in _SIGNALS]
    try:
        yield
    finally:
        for signum, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(signum, handler)


def ignore_signals() -> None:
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def quiet_end() -> Iterator[None]:
    """End the block silently when it is interrupted or cancelled, or when nobody reads standard output any more."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # do not fail in a locale without our characters
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError, asyncio.CancelledError):
        _forget_output()


def cancel_when_reader_leaves() -> None:
    """Cancel the current task when standard output is a pipe that loses its reader.

    Otherwise, after `| head`, the command would run until there is something more to print.
    """
    task = asyncio.current_task()
    assert task
    with contextlib.suppress(OSError, ValueError):  # standard output that is closed, or was replaced
        descriptor = sys.stdout.fileno()
        writes_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        if writes_only and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            asyncio.get_running_loop().add_reader(descriptor, task.cancel)


def _forget_output() -> None:
    """Discard buffered output that nobody may read, because Python would block or fail when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
