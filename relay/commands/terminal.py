"""What the commands that watch a relay share: colours, pages, a quiet end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from typing import IO, Final, NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let `quiet_end` see it: rich would end the process with exit code 1."""
        raise  # noqa: PLE0704  # rich calls this where it has caught the error


def console(file: IO[str] | None = None) -> Console:
    """Return what prints in colours to a terminal and plain text to anything else, by default to standard output.

    Lines are never wrapped or coloured by guesswork, and nothing in them is taken for markup.
    """
    return _Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextlib.contextmanager
def pages(to: Console, *, full_screen: bool) -> Iterator[Callable[[Sequence[Text]], None]]:
    """Yield what shows lines: on a screen of their own, each time in place of the last, or else one after another.

    On a screen that is too small, empty lines go first, and then those at the end.
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


def _forget_output() -> None:
    """Let go of what nobody may read, for Python would wait, or complain, when it writes that at its end."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
