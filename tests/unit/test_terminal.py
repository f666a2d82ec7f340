"""What the commands that watch a relay share: pages and colours."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from relay.commands import terminal


class Terminal(io.StringIO):
    """A terminal, as far as it is asked."""

    def isatty(self) -> bool:
        return True


def test_pages_in_a_pipe_are_set_apart_and_plain() -> None:
    file = io.StringIO()
    with terminal.pages(terminal.console(file), full_screen=False) as show:
        show([Text("a", "bold red"), Text("[b] :smile: " + "x" * 200)])
        show([Text("c")])
    assert file.getvalue() == f"a\n[b] :smile: {'x' * 200}\n\nc\n"


def test_a_terminal_is_shown_colours_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for wanted in (True, False):
        file = Terminal()
        with terminal.pages(terminal.console(file), full_screen=False) as show:
            show([Text("a", "red")])
        assert ("\x1b[31m" in file.getvalue()) == wanted
        monkeypatch.setenv("NO_COLOR", "1")


def test_a_full_screen_is_given_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit loses its empty lines, and then its end."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LINES", "2")
    monkeypatch.setenv("COLUMNS", "80")
    file = Terminal()

    def fail() -> None:
        with terminal.pages(terminal.console(file), full_screen=True) as show:
            show([Text("first"), Text(), Text("second"), Text("third")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    out = file.getvalue()
    assert "\x1b[?1049h" in out
    assert "second" in out
    assert "third" not in out
    assert out.rindex("\x1b[?1049l") > out.index("second")
