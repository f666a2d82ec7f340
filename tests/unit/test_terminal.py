"""What the commands that watch a relay share: pages and colours."""

from __future__ import annotations

import io
import os

import pytest

from relay.commands import terminal


class Terminal(io.StringIO):
    """A terminal, as far as it is asked."""

    def isatty(self) -> bool:
        return True


def test_pages_in_a_pipe_are_set_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """And there is no control character among them."""
    with terminal.pages(full_screen=False) as show:
        show(["a", "b"])
        show(["c"])
    assert capsys.readouterr().out == "a\nb\n\nc\n"


def test_a_full_screen_is_given_back_whatever_happens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is drawn over the last; what does not fit loses its empty lines, and then its end."""

    def fail() -> None:
        with terminal.pages(full_screen=True) as show:
            show(["a", "", "b"])
            show(["c", "d", "e"])
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 2)))
    with pytest.raises(KeyboardInterrupt):
        fail()
    out = capsys.readouterr().out
    assert out.startswith("\x1b[?1049h")
    assert "\x1b[Ha\x1b[K\nb\x1b[K\x1b[J\x1b[Hc\x1b[K\nd\x1b[K\x1b[J" in out
    assert out.endswith("\x1b[?7h\x1b[?25h\x1b[?1049l")


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR, unless it is empty, wants none."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert [terminal.has_colours(stream) for stream in (Terminal(), io.StringIO())] == [True, False]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.has_colours(Terminal())
