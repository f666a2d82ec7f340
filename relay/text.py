r"""Text for people, made from text of strangers, databases and libraries: one line, without control characters.

Usable by all rooms. Pure.
"""

from __future__ import annotations

import os
import re
from typing import Final

ERROR_LETTERS: Final = 1000
"""Maximum length of an error's line: what a user's function raises may be of any length."""

_HARMFUL: Final = re.compile(
    "["
    "\0-\x1f\x7f-\x9f"  # the controls, C0 and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these reorder what is read
    "\u2028\u2029\ufeff"  # these end lines, or are not seen
    "\ud800-\udfff"  # these are no characters, and cannot be printed
    "]"
)


def harmless(text: str) -> str:
    r"""Write each character that a terminal would obey as `\u001b`; in a JSON string it means the same as before."""
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Replace line breaks and runs of spaces by single spaces."""
    return " ".join(text.split())


def error_line(ex: BaseException) -> str:
    """Describe an exception in one line, never empty.

    Of an error that Postgres reports, its primary message; of a system call that failed, the system's words for its
    number, after the file's name if there is one; of any other its text, or its type if it has none.
    """
    return _said(ex)[:ERROR_LETTERS]


def _said(ex: BaseException) -> str:
    if primary := getattr(getattr(ex, "diag", None), "message_primary", None):
        return one_line(primary)
    cause = getattr(ex, "os_error", ex)  # aiohttp wraps it
    text = one_line(str(cause))
    if found := re.search(r"\[Errno (\d+)\]", text):  # the first, where a name has several addresses
        text = os.strerror(int(found[1]))
        if isinstance(cause, OSError) and cause.filename is not None:
            text = f"{cause.filename}: {text}"
    return text or type(ex).__name__
