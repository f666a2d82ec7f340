"""One line of an exception, whatever it is."""

from __future__ import annotations

import os

import psycopg
import pytest

from relay.text import ERROR_LETTERS, error_line


@pytest.mark.parametrize(
    ("ex", "line"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), os.strerror(111)),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 101] …"), os.strerror(111)),
        (OSError(-2, "Name or service not known"), "[Errno -2] Name or service not known"),
        (FileNotFoundError(2, "No such file or directory", "keys.json"), f"keys.json: {os.strerror(2)}"),
        (psycopg.OperationalError("connection failed:\n  no route"), "connection failed: no route"),
        (ValueError("two\nlines"), "two lines"),
        (EOFError(), "EOFError"),
        (ValueError("x" * 5000), "x" * ERROR_LETTERS),
    ],
)
def test_an_exception_is_one_line_in_the_words_of_the_system(ex: Exception, line: str) -> None:
    assert error_line(ex) == line
