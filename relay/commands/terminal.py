"""What the commands that watch a relay share: text that cannot harm a terminal, pages, a quiet end.

Rules:
- Whatever a relay sent is escaped before it is shown, for users write tasks, and terminals obey control characters.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from typing import IO, Final

import click

_HARMFUL: Final = re.compile(
    "["
    "\0-\x1f\x7f-\x9f"  # the controls, C0 and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these reorder what is read
    "\u2028\u2029\ufeff"  # these end lines, or are not seen
    "\ud800-\udfff"  # these are no characters, and cannot be printed
    "]"
)

_BEGIN_SCREEN: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"
"""Another screen, without a cursor, whose lines end at its edge."""

_END_SCREEN: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"


def harmless(text: str) -> str:
    r"""Write each character that a terminal would obey as `\u001b`; in a JSON string it means the same as before."""
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def why(ex: Exception) -> str:
    """Say in a few words why something could not be reached."""
    text = " ".join(str(getattr(ex, "os_error", ex)).split())  # aiohttp wraps it
    if found := re.search(r"\[Errno (\d+)\]", text):  # the first, where a name has several addresses
        return os.strerror(int(found[1]))
    return harmless(text) or type(ex).__name__


def has_colours(stream: IO[str]) -> bool:
    """Tell whether to colour what is printed there: a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


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
