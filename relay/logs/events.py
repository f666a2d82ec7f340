"""Every event that is logged, its meaning and its fields.

docs/reference.md has this as a table. A test checks that no other event is logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Event(NamedTuple):
    """When an event is logged, and the fields of its line besides `event`, `level` and `timestamp`."""

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
        "messages of one type went to a board; only with `LOG_LEVEL=debug`",
        ("type", "recipients", "board", "messages"),
    ),
    "websocket.error": Event(
        "a client sent a bad message, or may not have what it asked for", ("clientId", "code", "message")
    ),
    "websocket.refused": Event(
        "a connection or a token was refused; one line a second for each reason, with the number of `more`",
        ("reason", "address", "origin", "detail", "more"),
    ),
    "websocket.unread_header": Event(
        "a trusted proxy wrote an address that cannot be read: its clients count as one", ("address", "found")
    ),
    "websocket.dropped": Event(
        "the relay disconnected a client: no answer to a ping, nothing read, no board followed, or its token ended",
        ("clientId", "reason"),
    ),
    "websocket.revoked": Event("a client lost the right to follow a board", ("clientId", "board")),
    "websocket.crowded_out": Event(
        "the limit of selections is reached, and the address with the most lost one to another client",
        ("board", "subscribers"),
    ),
    "websocket.cursor_refused": Event(
        "a client could not resume from its cursor, and got its board", ("board", "reason")
    ),
    "health.refused": Event(
        "a connection to `HEALTH_PORT` was refused, because there were too many", ("reason", "address", "more")
    ),
    "log.dropped": Event("the log can be written again, after lines were lost", ("lines",)),
    "access.open": Event("no credential is configured", ("problem",)),
    "access.reloaded": Event("SIGHUP: credentials and certificate were read again"),
    "access.reload_failed": Event("SIGHUP: credentials and certificate stay as they were", ("problem",)),
    "access.keys_failed": Event("the keys could not be fetched from their address", ("problem",)),
    "access.may_read_failed": Event("`relay.may_read` in the database failed or timed out", ("problem",)),
    "feed.running": Event("changes flow, perhaps again"),
    "feed.problem": Event("changes do not flow: worth an alert", ("problem",)),
    "feed.sync": Event(
        "all boards are sent again: on request, or because a table was truncated or is watched differently",
        ("reason",),
    ),
    "feed.continuity_lost": Event(
        "all boards are sent again: changes after the relay's position are lost", ("reason",)
    ),
    "feed.paused": Event(
        "a transaction keeps the journal full: boards are sent again every five seconds", ("problem",)
    ),
    "feed.fault": Event("an unexpected error: the relay reconnects", ("exception",)),
    "feed.not_refreshed": Event(
        "Postgres did not let the relay repair its trigger functions or its roles' rights; the relay tries again",
        ("problem",),
    ),
    "feed.rights_restored": Event(
        "the relay's own roles lacked rights, so that writers may have failed, and have them again",
        ("roles",),
    ),
    "feed.unreadable_row": Event("a row cannot be shown, and is left out", ("problem",)),
    "feed.board_failed": Event(
        "a board cannot be read: its subscribers get an `error`, and the relay tries again", ("board", "problem")
    ),
    "worker.running": Event("one of several workers listens", ("worker", "pid")),
    "worker.died": Event("one of several workers ended, and is restarted", ("worker", "reason")),
    "worker.failed": Event("a worker could not start", ("worker", "problem")),
    "worker.killed": Event("a worker did not stop, and was killed", ("worker", "reason")),
    "publisher.running": Event("a publisher started", ("health",)),
    "publisher.active": Event("a publisher became the active one", ("stream",)),
    "publisher.problem": Event(
        "nothing can be published, or another publisher is active: worth an alert if it stays", ("problem",)
    ),
    "publisher.fault": Event("an unexpected error: the publisher reconnects", ("exception",)),
    "publisher.begins_again": Event(
        "the stream is inconsistent, and the publisher starts over in it: all boards are sent again", ("problem",)
    ),
    "relay.unknown_setting": Event("an environment variable resembles a setting, misspelt", ("setting", "problem")),
    "relay.stopping": Event("the daemon was asked to stop"),
    "relay.stopped": Event("the daemon stopped"),
    "relay.not_caught_up": Event("the daemon stopped without sending everything committed before", ("problem",)),
    "relay.cut_short": Event(
        "a second signal stopped the daemon before all clients were disconnected in turn", ("problem",)
    ),
}
