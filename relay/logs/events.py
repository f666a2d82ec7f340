"""Every event that the log can have, what it means, and its fields.

docs/reference.md has this as a table, and a test checks that no other event is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Event(NamedTuple):
    """When an event is logged, and which fields its line has beside `event`, `level` and `timestamp`."""

    meaning: str
    fields: tuple[str, ...] = ()


EVENTS: Final[Mapping[str, Event]] = {
    "websocket.listening": Event("the daemon started and serves clients", ("host", "port", "socket", "health")),
    "websocket.disabled": Event("the daemon started without clients: `WS_ENABLED=false`", ("host", "port", "health")),
    "websocket.connection": Event("a client connected", ("clientId", "connections")),
    "websocket.close": Event("a client's connection ended", ("clientId", "connections", "code")),
    "websocket.subscribe": Event("a client followed a board", ("clientId", "board")),
    "websocket.unsubscribe": Event("a client left a board", ("clientId", "board")),
    "websocket.broadcast": Event(
        "messages of one type went to a board; with `LOG_LEVEL=debug` alone",
        ("type", "recipients", "board", "messages"),
    ),
    "websocket.error": Event(
        "a client sent a bad message, or may not have what it asked for", ("clientId", "code", "message")
    ),
    "websocket.refused": Event(
        "a connection or a token was refused; one line a second for each reason, with how many `more`",
        ("reason", "address", "origin", "detail", "more"),
    ),
    "websocket.unread_header": Event(
        "a trusted proxy wrote an address that cannot be read: its clients count as one", ("address", "found")
    ),
    "websocket.dropped": Event(
        "the relay disconnected a client: no answer to a ping, nothing read, no board followed, or its token ended",
        ("clientId", "reason"),
    ),
    "websocket.revoked": Event("a client may not follow a board any more", ("clientId", "board")),
    "websocket.crowded_out": Event(
        "as many selections are followed as may be, and the fullest address lost one to another client",
        ("board", "subscribers"),
    ),
    "websocket.cursor_refused": Event(
        "a client cannot go on from its cursor, and is sent its board", ("board", "reason")
    ),
    "health.refused": Event(
        "a connection to `HEALTH_PORT` was refused: strangers hold too many", ("reason", "address", "more")
    ),
    "log.dropped": Event("lines could not be written, and now others can", ("lines",)),
    "access.open": Event("no credential is configured", ("problem",)),
    "access.reloaded": Event("SIGHUP: credentials and certificate were read again"),
    "access.reload_failed": Event("SIGHUP: credentials and certificate stay as they were", ("problem",)),
    "access.keys_failed": Event("the address of keys gives no answer", ("problem",)),
    "access.may_read_failed": Event("`relay.may_read` in the database gives no answer", ("problem",)),
    "feed.running": Event("changes flow, perhaps again"),
    "feed.problem": Event("changes do not flow: worth an alert", ("problem",)),
    "feed.sync": Event(
        "all boards are sent again: somebody asked for it, or a table was truncated or watched otherwise", ("reason",)
    ),
    "feed.continuity_lost": Event(
        "all boards are sent again: what follows the relay's position is lost", ("reason",)
    ),
    "feed.paused": Event(
        "the journal is full, and kept so by a transaction: boards are sent every five seconds", ("problem",)
    ),
    "feed.fault": Event("an error that nobody foresaw: the relay connects again", ("exception",)),
    "feed.not_refreshed": Event(
        "Postgres refused to make trigger functions that fit a table that was altered; it is tried again",
        ("problem",),
    ),
    "feed.unreadable_row": Event("a row cannot be shown, and is left out", ("problem",)),
    "feed.board_failed": Event(
        "a board cannot be read: its subscribers get an `error`, and it is read again", ("board", "problem")
    ),
    "worker.running": Event("with several workers: one listens", ("worker", "pid")),
    "worker.died": Event("with several workers: one has ended, and is started again", ("worker", "reason")),
    "worker.failed": Event("a worker could not start", ("worker", "problem")),
    "worker.killed": Event("a worker did not stop, and was killed", ("worker", "reason")),
    "publisher.running": Event("a publisher started", ("health",)),
    "publisher.active": Event("a publisher publishes, for no other does", ("stream",)),
    "publisher.problem": Event(
        "nothing can be published, or another publisher does: worth an alert if it stays", ("problem",)
    ),
    "publisher.fault": Event("an error that nobody foresaw: the publisher connects again", ("exception",)),
    "publisher.begins_again": Event(
        "the stream does not make sense, and a new one begins in it: all boards are sent again", ("problem",)
    ),
    "relay.unknown_setting": Event("a variable resembles a setting, misspelt", ("setting", "problem")),
    "relay.stopping": Event("the daemon was asked to stop"),
    "relay.stopped": Event("the daemon stopped"),
    "relay.not_caught_up": Event("the daemon stopped and could not pass on what was committed before", ("problem",)),
    "relay.cut_short": Event(
        "the daemon stopped at a second signal, before all clients were disconnected in turn", ("problem",)
    ),
}
