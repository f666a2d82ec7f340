r"""Text for people, from text of strangers, databases and libraries: one line, without control characters. Pure."""

from __future__ import annotations

import os
import re
from typing import Final

ERROR_LETTERS: Final = 1000
"""Maximum length of an error's line, because a user's function may raise one of any length."""

_HARMFUL: Final = re.compile(
    "["
    "\0-\x1f\x7f-\x9f"  # the controls, C0 and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls, which reorder text
    "\u2028\u2029\ufeff"  # line separators, and an invisible mark
    "\ud800-\udfff"  # surrogates, which cannot be printed
    "]"
)


def harmless(text: str) -> str:
    r"""Escape harmful characters, like `\u001b`, so that JSON strings keep their meaning."""
    return _HARMFUL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Replace line breaks and runs of spaces by single spaces."""
    return " ".join(text.split())


def error_line(ex: BaseException) -> str:
    """Describe an exception in one line, which is never empty.

    This is the primary message of an error of Postgres, with its hint if the server has run out of something; the
    system's text for a failed system call, with the file's name if there is one; or the exception's text or type.
    """
    return _described(ex)[:ERROR_LETTERS]


def _described(ex: BaseException) -> str:
    diag = getattr(ex, "diag", None)
    if primary := getattr(diag, "message_primary", None):
        # What a server has run out of, such as locks, is in the hint alone.
        hint = getattr(diag, "message_hint", None) if str(getattr(diag, "sqlstate", "")).startswith("53") else None
        return one_line(f"{primary}: {hint}" if hint else primary)
    cause = getattr(ex, "os_error", ex)  # aiohttp wraps it
    text = one_line(str(cause))
    if found := re.search(r"\[Errno (\d+)\]", text):  # the first one, if a name has several addresses
        text = os.strerror(int(found[1]))
        if isinstance(cause, OSError) and cause.filename is not None:
            text = f"{cause.filename}: {text}"
    return text or type(ex).__name__
