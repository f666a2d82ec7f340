"""One board: each rule of who receives what, in the smallest scene that shows it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from relay.hub.board import Board, Delivery, Step
from relay.model.messages import Message
from relay.model.snapshot import Snapshot

Sent = list[tuple[set[str], bytes]]


def at(text: str) -> Snapshot:
    return Snapshot.parse(text)


def delivered(deliveries: Iterator[Delivery[str]]) -> Sent:
    """Return what is to be sent to whom, as it was when it was yielded."""
    return [(set(one.to), shown(one)) for one in deliveries]


def shown(delivery: Delivery[str]) -> bytes:
    messages = [message.json for step in delivery.steps for message in step.messages]
    return b"".join([b"(sync)" if delivery.synced else b"", *messages])


def step(xid: int) -> Step:
    return Step(xid, [Message("task.created", f"[{xid}]".encode())])


def truncate(xid: int) -> Step:
    return Step(xid, [], sync="truncate")


def board_with(*live: str, position: str = "10:10:") -> Board[str]:
    """Return a board that these follow, as the feed is at this position."""
    board: Board[str] = Board()
    for subscriber in live:
        board.join(subscriber)
    board.begin_read()
    list(board.synced(at(position), at(position)))
    return board


def test_a_newcomer_gets_the_board_and_then_what_follows() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    assert delivered(board.synced(at("10:10:"), at("10:10:"))) == [({"ann"}, b"(sync)")]
    assert delivered(board.publish([step(10), step(11)], at("12:12:"))) == [({"ann"}, b"[10][11]")]


def test_all_waiting_subscribers_get_one_read() -> None:
    board: Board[str] = Board()
    for subscriber in ("ann", "bob"):
        board.join(subscriber)
    board.begin_read()
    assert delivered(board.synced(at("10:10:"), at("10:10:"))) == [({"ann", "bob"}, b"(sync)")]


def test_a_subscriber_that_waits_for_a_read_gets_nothing_before_it() -> None:
    board: Board[str] = Board()
    board.join("ann")
    assert delivered(board.publish([step(10)], at("11:11:"))) == []
    board.begin_read()
    assert delivered(board.publish([step(11)], at("12:12:"))) == []


def test_what_the_feed_brought_before_a_read_began_is_in_its_sync_alone() -> None:
    board: Board[str] = Board()
    board.join("ann")
    list(board.publish([step(10)], at("11:11:")))
    board.begin_read()
    assert delivered(board.synced(at("11:11:"), at("11:11:"))) == [({"ann"}, b"(sync)")]


def test_a_sync_older_than_the_feed_is_followed_by_what_it_lacks() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    list(board.publish([step(10), step(11)], at("12:12:")))
    list(board.publish([step(12)], at("13:13:")))
    assert delivered(board.synced(at("11:11:"), at("13:13:"))) == [({"ann"}, b"(sync)[11][12]")]
    assert delivered(board.publish([step(13)], at("14:14:"))) == [({"ann"}, b"[13]")]


def test_of_a_sync_newer_than_the_feed_nothing_comes_twice() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    list(board.synced(at("12:12:"), at("10:10:")))
    assert delivered(board.publish([step(10)], at("11:11:"))) == []
    assert delivered(board.publish([step(11), step(12)], at("13:13:"))) == [({"ann"}, b"[12]")]


def test_a_late_commit_of_a_low_id_follows_a_sync_that_lacks_it() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    list(board.synced(at("10:13:10"), at("10:11:10")))
    assert delivered(board.publish([step(12), step(10)], at("13:13:"))) == [({"ann"}, b"[10]")]


def test_a_subscriber_that_was_ahead_of_the_feed_joins_the_others_once_it_has_caught_up() -> None:
    board = board_with("ann")
    board.join("bob")
    board.begin_read()
    list(board.synced(at("11:11:"), at("10:10:")))
    assert delivered(board.publish([step(10)], at("11:11:"))) == [({"ann"}, b"[10]")]
    assert delivered(board.publish([step(11)], at("12:12:"))) == [({"ann", "bob"}, b"[11]")]


def test_subscribers_that_have_seen_nothing_of_a_batch_share_a_delivery() -> None:
    board: Board[str] = Board()
    for subscriber, snapshot in (("ann", "10:10:"), ("bob", "11:11:"), ("eve", "12:12:")):
        board.join(subscriber)
        board.begin_read()
        list(board.synced(at(snapshot), at("10:10:")))
    assert delivered(board.publish([step(12)], at("13:13:"))) == [({"ann", "bob", "eve"}, b"[12]")]


def test_a_subscriber_that_is_further_ahead_stays_so() -> None:
    board: Board[str] = Board()
    for subscriber, snapshot in (("ann", "11:11:"), ("bob", "13:13:")):
        board.join(subscriber)
        board.begin_read()
        list(board.synced(at(snapshot), at("10:10:")))
    assert delivered(board.publish([step(10), step(11)], at("12:12:"))) == [({"ann"}, b"[11]")]
    assert delivered(board.publish([step(12), step(13)], at("14:14:"))) == [
        ({"bob"}, b"[13]"),
        ({"ann"}, b"[12][13]"),
    ]
    assert delivered(board.publish([step(14)], at("15:15:"))) == [({"ann", "bob"}, b"[14]")]


def test_a_read_at_a_snapshot_comes_to_all_that_do_not_hold_the_board_at_it() -> None:
    """Also to subscribers that have seen a part of it; not to those that have the board at that moment, or later."""
    for snapshot, expected in (("12:12:", b"[at]"), ("11:13:11", b"[at]"), ("13:13:", b""), ("14:14:", b"")):
        board = board_with("ann")
        board.join("bob")
        board.begin_read()
        list(board.synced(at(snapshot), at("10:10:")))
        one = Step(0, [Message("task.updated", b"[at]")], at=at("13:13:"))
        sent = {name: text for to, text in delivered(board.publish([step(10), one], at("13:13:"))) for name in to}
        assert (sent["ann"], sent.get("bob", b"")) == (b"[10][at]", expected)


def test_a_batch_with_a_step_that_asks_for_a_sync_is_not_sent_and_nothing_is_until_the_board_is_read_again() -> None:
    board = board_with("ann")
    assert delivered(board.publish([step(10), truncate(11), step(12)], at("13:13:"))) == []
    assert board.needs_read
    assert delivered(board.publish([step(13)], at("14:14:"))) == []
    board.begin_read()
    assert delivered(board.synced(at("14:14:"), at("14:14:"))) == [({"ann"}, b"(sync)")]


def test_a_sync_that_lacks_a_step_that_asks_for_one_is_not_shown() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    list(board.publish([truncate(10)], at("11:11:")))
    assert delivered(board.synced(at("10:10:"), at("11:11:"))) == []
    assert board.needs_read
    board.begin_read()
    assert delivered(board.synced(at("11:11:"), at("11:11:"))) == [({"ann"}, b"(sync)")]


@pytest.mark.parametrize("published_first", [True, False])
def test_a_sync_that_has_a_step_that_asks_for_one_needs_no_other(published_first: bool) -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    if published_first:
        list(board.publish([truncate(10)], at("11:11:")))
    assert delivered(board.synced(at("11:11:"), at("10:10:"))) == [({"ann"}, b"(sync)")]
    if not published_first:
        list(board.publish([truncate(10)], at("11:11:")))
    assert not board.needs_read


def test_a_subscriber_that_asks_while_the_board_is_read_waits_for_the_next_read() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    board.join("bob")
    needed_while_it_is_read = board.needs_read
    assert delivered(board.synced(at("10:10:"), at("10:10:"))) == [({"ann"}, b"(sync)")]
    assert (needed_while_it_is_read, board.needs_read) == (False, True)
    board.begin_read()
    assert delivered(board.synced(at("10:10:"), at("10:10:"))) == [({"bob"}, b"(sync)")]


def test_a_subscriber_that_asks_again_gets_the_board_once_more_and_nothing_in_between() -> None:
    board = board_with("ann", "bob")
    board.join("ann")
    assert delivered(board.publish([step(10)], at("11:11:"))) == [({"bob"}, b"[10]")]
    board.begin_read()
    assert delivered(board.synced(at("11:11:"), at("11:11:"))) == [({"ann"}, b"(sync)")]


def test_a_subscriber_that_asks_again_during_its_read_waits_for_the_next() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    board.join("ann")
    assert delivered(board.synced(at("10:10:"), at("10:10:"))) in ([], [(set(), b"(sync)")])
    assert board.needs_read


def test_a_read_that_failed_is_needed_again_by_those_it_was_for() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    list(board.publish([step(10)], at("11:11:")))
    board.abandon_read()
    assert board.needs_read
    board.begin_read()
    assert delivered(board.synced(at("11:11:"), at("11:11:"))) == [({"ann"}, b"(sync)")]


def test_a_board_that_nobody_waits_for_needs_no_read() -> None:
    assert not Board[str]().needs_read
    assert not board_with("ann").needs_read


def test_a_read_is_needed_while_a_client_waits_and_no_read_is_running() -> None:
    board: Board[str] = Board()
    needs = [board.needs_read]
    board.join("ann")
    needs.append(board.needs_read)
    board.begin_read()
    board.join("bob")
    assert [*needs, board.needs_read] == [False, True, False]


def test_a_board_is_not_shown_to_clients_that_did_not_ask() -> None:
    board: Board[str] = Board()
    board.join("ann")
    assert delivered(board.synced(at("10:10:"), at("10:10:"))) == []
    assert board.needs_read


def test_a_subscriber_that_leaves_while_waiting_is_sent_nothing() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.leave("ann")
    assert (len(board), bool(board), board.needs_read) == (0, False, False)


def test_a_subscriber_that_leaves_during_its_read_is_sent_nothing() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.join("bob")
    board.begin_read()
    board.leave("ann")
    assert delivered(board.synced(at("10:10:"), at("10:10:"))) == [({"bob"}, b"(sync)")]
    assert len(board) == 1


def test_a_subscriber_that_leaves_while_ahead_of_the_feed_is_sent_nothing() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    list(board.synced(at("12:12:"), at("10:10:")))
    board.leave("ann")
    assert not board
    assert delivered(board.publish([step(12)], at("13:13:"))) == []


def test_a_subscriber_that_leaves_while_live_is_sent_nothing() -> None:
    board = board_with("ann", "bob")
    board.leave("ann")
    assert delivered(board.publish([step(10)], at("11:11:"))) == [({"bob"}, b"[10]")]


def test_a_subscriber_that_leaves_without_having_come_changes_nothing() -> None:
    board = board_with("ann")
    board.leave("bob")
    assert len(board) == 1


def test_a_subscriber_that_fell_behind_is_sent_nothing_until_it_joins_again() -> None:
    board = board_with("ann", "bob")
    board.fall_behind(["ann"])
    assert (board.is_behind("ann"), board.is_behind("bob"), len(board)) == (True, False, 2)
    assert delivered(board.publish([step(10)], at("11:11:"))) == [({"bob"}, b"[10]")]
    board.join("ann")
    assert (board.is_behind("ann"), board.needs_read) == (False, True)


def test_a_subscriber_that_falls_behind_while_being_sent_to_is_behind_after() -> None:
    board = board_with("ann")
    board.join("bob")
    board.begin_read()
    list(board.synced(at("12:12:"), at("10:10:")))
    for one in board.publish([step(10), step(12)], at("13:13:")):
        board.fall_behind(list(one.to))
    assert [board.is_behind(subscriber) for subscriber in ("ann", "bob")] == [True, True]
    assert delivered(board.publish([step(13)], at("14:14:"))) == []


def test_a_subscriber_that_falls_behind_when_handed_the_board_is_behind_after() -> None:
    board: Board[str] = Board()
    board.join("ann")
    board.begin_read()
    for one in board.synced(at("10:10:"), at("10:10:")):
        board.fall_behind(list(one.to))
    assert board.is_behind("ann")
    assert delivered(board.publish([step(10)], at("11:11:"))) == []


class Forgettable(Snapshot):
    """A snapshot whose end can be noticed."""


def test_nothing_is_kept_of_subscribers_that_were_ahead_of_the_feed_and_left() -> None:
    board = board_with("ann")
    board.join("bob")
    board.begin_read()
    snapshot = Forgettable(12, 12, frozenset())
    list(board.synced(snapshot, at("10:10:")))
    kept = weakref.ref(snapshot)
    del snapshot
    board.leave("bob")
    gc.collect()
    assert kept() is None


# Resuming


def resuming(*cursors: str) -> Board[str]:
    """Return a board that somebody resumes from each of these cursors, as the journal is being read for them."""
    board: Board[str] = Board()
    for cursor in cursors:
        board.resume(cursor, at(cursor))
    board.begin_resume()
    return board


def test_a_subscriber_that_resumes_gets_what_its_cursor_lacks_and_then_what_follows() -> None:
    board = resuming("10:12:10", "11:11:")
    steps = [step(11), step(10), step(12)]
    assert delivered(board.resumed(at("13:13:"), steps, at("13:13:"))) == [
        ({"10:12:10"}, b"[10][12]"),
        ({"11:11:"}, b"[11][12]"),
    ]
    assert delivered(board.publish([step(13)], at("14:14:"))) == [({"10:12:10", "11:11:"}, b"[13]")]


def test_a_subscriber_that_missed_nothing_is_informed_of_it() -> None:
    board = resuming("10:10:")
    assert delivered(board.resumed(at("10:10:"), [], at("10:10:"))) == [({"10:10:"}, b"")]


def test_what_was_missed_and_is_older_than_the_feed_is_followed_by_the_rest() -> None:
    board = resuming("10:10:")
    list(board.publish([step(10), step(11)], at("12:12:")))
    [delivery] = board.resumed(at("11:11:"), [step(10)], at("12:12:"))
    assert (shown(delivery), delivery.at) == (b"[10][11]", at("12:12:"))


def test_of_what_was_missed_and_is_newer_than_the_feed_nothing_comes_twice() -> None:
    board = resuming("10:10:")
    [delivery] = board.resumed(at("12:12:"), [step(10), step(11)], at("10:10:"))
    assert (shown(delivery), delivery.at) == (b"[10][11]", at("12:12:"))
    assert delivered(board.publish([step(10)], at("11:11:"))) == []
    assert delivered(board.publish([step(11), step(12)], at("13:13:"))) == [({"10:10:"}, b"[12]")]


@pytest.mark.parametrize("where", ["missed", "tail"])
def test_a_subscriber_that_missed_a_truncate_gets_the_board_and_the_reason(where: str) -> None:
    board = resuming("10:10:")
    list(board.publish([truncate(10)] if where == "tail" else [], at("11:11:")))
    assert delivered(board.resumed(at("10:10:"), [truncate(10)] if where == "missed" else [], at("11:11:"))) == []
    board.begin_read()
    assert [one.reason for one in board.synced(at("11:11:"), at("11:11:"))] == ["truncate"]


def test_a_read_of_the_journal_that_failed_is_needed_again() -> None:
    board = resuming("10:10:")
    assert board.resuming == set()
    board.abandon_resume()
    assert board.resuming == {at("10:10:")}


def test_a_subscriber_that_resumes_while_the_journal_is_read_waits_for_the_next_read() -> None:
    board = resuming("10:10:")
    board.resume("late", at("11:11:"))
    assert delivered(board.resumed(at("12:12:"), [step(10), step(11)], at("12:12:"))) == [({"10:10:"}, b"[10][11]")]
    assert board.resuming == {at("11:11:")}


def test_a_sync_and_a_resume_of_one_board_each_have_their_own_tail() -> None:
    board = resuming("10:10:")
    list(board.publish([step(10)], at("11:11:")))
    board.join("ann")
    board.begin_read()
    list(board.publish([step(11)], at("12:12:")))
    assert delivered(board.synced(at("11:11:"), at("12:12:"))) == [({"ann"}, b"(sync)[11]")]
    assert delivered(board.resumed(at("10:10:"), [], at("12:12:"))) == [({"10:10:"}, b"[10][11]")]
