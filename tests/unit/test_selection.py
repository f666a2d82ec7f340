"""Which boards an edge has delivered: each board that is followed, from when it is said to be until it is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.nats import selection
from relay.nats.selection import Selection

BOARDS = "abcdef"

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["come", "leave"]), st.sampled_from(BOARDS)),
        st.tuples(st.sampled_from(["prepare", "switch"]), st.just("")),
    ),
    max_size=80,
)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have few boards be many."""
    with monkeypatch.context() as patch:
        patch.setattr(selection, "MAX_BOARDS", 4)
        yield


def selected(chosen: Selection, *boards: str, filtered: bool = True) -> bool:
    """Select these boards; return whether that was another selection."""
    for board in boards:
        chosen.want(board)
    if not chosen.prepare(boards):
        return False
    chosen.connected(filtered=filtered)
    chosen.switch()
    return True


@given(STEPS, st.booleans())
def test_a_board_stays_selected_as_long_as_it_is_followed(steps: list[tuple[str, str]], filtered: bool) -> None:
    """However clients come and go between the choice of boards and the switch to them."""
    chosen = Selection()
    followed: set[str] = set()
    safe: set[str] = set()
    prepared = False
    for step, board in steps:
        match step:
            case "come":
                followed.add(board)
                chosen.want(board)
            case "leave":
                followed.discard(board)
                safe.discard(board)
            case "prepare" if not prepared:
                if prepared := chosen.prepare(followed):
                    chosen.connected(filtered=filtered)
            case "switch" if prepared:
                chosen.switch()
                prepared = False
        safe |= {board for board in followed if chosen.has(board)}
        assert chosen.current is None or safe <= chosen.current
    if prepared:
        chosen.switch()
    selected(chosen, *followed, filtered=filtered)
    assert all(map(chosen.has, followed))


def test_boards_are_named_until_they_are_many_and_again_when_they_are_half_as_many() -> None:
    """Near the limit, an edge does not go back and forth."""
    chosen = Selection()
    for boards, expected in (("abcd", {*"abcd"}), ("abcde", None), ("abcd", None), ("abc", None), ("ab", {*"ab"})):
        selected(chosen, *boards)
        assert chosen.current == expected


def test_a_server_that_delivers_everything_is_not_asked_again() -> None:
    """Until there is another connection, perhaps to another server."""
    chosen = Selection()
    assert selected(chosen, "a", filtered=False)
    assert chosen.current is None
    assert not selected(chosen, "b")
    assert chosen.has("b")
    chosen.connected(filtered=False)
    assert selected(chosen, "b")
    assert chosen.current == {"b"}
