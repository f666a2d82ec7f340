"""What the commands that watch a relay share: colours, pages, a quiet end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from typing import IO, Final, NoReturn

import click

_BEGIN_SCREEN: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""Another screen, without a cursor, whose lines end at its edge."""

_END_SCREEN: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"


def has_colours(stream: IO[str]) -> bool:
    """Tell whether to colour what is printed there: a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Let SIGTERM take the same way out as Ctrl-C, and nothing disturb what is done on that way."""

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
    """End the block without a word when it is interrupted, cancelled, or nobody reads standard output any more."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without our characters is no reason to fail
    try:
        yield
    except (KeyboardInterrupt, BrokenPipeError, asyncio.CancelledError):
        _forget_output()


def cancel_when_reader_leaves() -> None:
    """Have the running task cancelled when the pipe that standard output is has no reader any more.

    Without it, `| head` would be waited for until there is something more to print.
    """
    task = asyncio.current_task()
    assert task
    with contextlib.suppress(OSError, ValueError):  # standard output that is closed, or was replaced
        descriptor = sys.stdout.fileno()
        writes_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
        if writes_only and stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            asyncio.get_running_loop().add_reader(descriptor, task.cancel)


@contextlib.contextmanager
def pages(*, full_screen: bool) -> Iterator[Callable[[Sequence[str]], None]]:
    """Yield what shows lines: on a screen of their own, each time in place of the last, or else one after another."""
    if not full_screen:
        before = itertools.chain([""], itertools.repeat("\n"))
        yield lambda lines: click.echo(next(before) + "\n".join(lines))
        return
    click.echo(_BEGIN_SCREEN, nl=False, color=True)
    try:
        yield _show_page
    finally:
        click.echo(_END_SCREEN, nl=False, color=True)


def _show_page(lines: Sequence[str]) -> None:
    """Draw over the last page without a flicker, and no more than fits."""
    height = shutil.get_terminal_size().lines
    fitting = lines if len(lines) <= height else [line for line in lines if line]
    click.echo("\x1b[H" + "\x1b[K\n".join(fitting[:height]) + "\x1b[K\x1b[J", nl=False, color=True)


def _forget_output() -> None:
    """Let go of what nobody may read, for Python would wait, or complain, when it writes that at its end."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
