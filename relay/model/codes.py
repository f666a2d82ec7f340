"""The meaning of each code and reason that clients and operators see. Pure.

The schema, docs/clients.md, docs/troubleshooting.md and docs/reference.md are generated from these texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from relay.model.cursor import Reason
from relay.model.messages import CloseCode, ErrorCode

ERRORS: Final[Mapping[ErrorCode, str]] = {
    "invalid_json": "text that is not JSON",
    "invalid_message": "JSON that is not an object with a type",
    "unknown_type": "an unknown type",
    "invalid_board_id": (
        "a `boardId` that is missing, not a string, contains U+0000, or is spelt differently from the database, such "
        "as a uuid in capitals: the message gives the right spelling. You do not follow the board"
    ),
    "invalid_xid": "an `xid` that is missing, or not a string of digits as from `pg_current_xact_id()`",
    "invalid_selection": (
        "`lanes` or `columns` that are not lists of strings, `tasks` that is not a list of ids, over 100 of them "
        "or 2,048 characters in total, or a selection without a `cursor`"
    ),
    "board_unavailable": (
        "a board that cannot be read at present (`boardId`). "
        "You stay subscribed, and get its `board.sync` as soon as it can be read"
    ),
    "binary_message": "a binary message",
    "not_allowed": (
        "a board that you may not follow, or no longer (`boardId`). "
        "The error does not reveal whether the board exists"
    ),
    "not_authenticated": "a fresh token that is not accepted; the previous one remains valid",
    "not_subscribed": "`includes` for a board that you do not follow (`boardId`, `xid`)",
    "not_included": (
        "a transaction that did not end within half a minute, or whose database was replaced or has crashed "
        "(`boardId`, `xid`)"
    ),
    "too_many_boards": "more boards than `WS_MAX_BOARDS`; `boardId` is the one refused",
    "too_many_waits": (
        "`includes` while this connection has 100 waits, or while all connections have 10,000 and your address has "
        "its share (`boardId`, `xid`). A wait can also be ended in favour of another address"
    ),
    "too_many_selections": (
        "a selection that no other client has, while the relay has 1,000 and your address has its share (`boardId`). "
        "It can also come later, when another address needs its share; you then no longer follow the board"
    ),
    "too_many_messages": "more messages a second than `WS_MESSAGE_RATE`, or four seconds' worth at once",
}
"""When each error is sent."""

REASONS: Final[Mapping[Reason, str]] = {
    "cursor_invalid": "what you sent is not a cursor of this board",
    "epoch_changed": "the database was replaced, restored or installed again, failed over, or crashed",
    "schema_changed": "columns, types, labels, partitions or triggers changed, perhaps while no relay was connected",
    "journal_pruned": "you were away for longer than the journal is kept",
    "too_much_missed": "you, or the relay, missed more than the whole board contains",
    "journalling_paused": "changes were not recorded for a while, because the journal was full",
    "batch_cut_short": "the relay lost Postgres in the middle of a large batch",
    "truncate": "the table was truncated",
    "resync": "the DBA asked for it",
    "lanes_changed": "a lane of the board was added, renamed, reordered or removed, or changed board",
    "extras_changed": "tasks show data of other tables that changed for many tasks at once, or could not be read",
    "watch_changed": "a table is now watched, no longer watched, or watched with other options",
    "row_unreadable": "a row could not be recorded",
    "changes_missing": "the journal's entries for a row contradict each other: triggers were off for a while",
    "fell_behind": "you did not read what you were sent",
    "subscribed_again": (
        "you had already followed this board on this connection: your cursor may be older than what you were sent"
    ),
}
"""Why a client is sent a board that it did not ask for."""


class Close(NamedTuple):
    """What a close code means to a client, whether to reconnect, and when it deserves an operator's attention."""

    meaning: str
    reconnect: str
    worth: str


_NOT_BEFORE: Final = "not before it is fixed"
_ANY: Final = "there are any: a broken client"

CLOSE_CODES: Final[Mapping[int, Close]] = {
    1000: Close("you closed it", "as you like", "never"),
    1002: Close(
        "a frame violated the WebSocket protocol",
        _NOT_BEFORE,
        "there are many: clients of another protocol, or a proxy that garbles frames",
    ),
    1006: Close(
        "the connection broke, or no ping was answered for `WS_HEARTBEAT`",
        "yes, with growing pauses",
        "it is the usual end: the network, or a proxy that closes silent connections",
    ),
    CloseCode.INVALID_TEXT: Close("a text message was not UTF-8", _NOT_BEFORE, _ANY),
    CloseCode.POLICY: Close(
        "20 bad messages in a row, or 5 rejected tokens",
        f"{_NOT_BEFORE}; after `too_many_messages`, in a few seconds",
        "there are any: a broken client, or an attempt to guess tokens",
    ),
    CloseCode.TOO_BIG: Close("a message over 1 MiB", _NOT_BEFORE, _ANY),
    CloseCode.SERVICE_RESTART: Close(
        "the relay is stopping, perhaps to restart",
        "yes, after a random pause of up to a few seconds; another relay may be there already",
        "nobody stopped it",
    ),
    CloseCode.TRY_AGAIN_LATER: Close(
        "you read nothing of what you were sent for `WS_HEARTBEAT`",
        "yes, when you can read again",
        "there are many at once: a network that is too slow for the rate of changes",
    ),
    CloseCode.TOKEN_EXPIRED: Close(
        "your token has expired", "yes, with a fresh one", "clients do not come back: they get no fresh token"
    ),
    CloseCode.REFUSED: Close(
        "your token is not valid, or no longer, or your page's origin is not in `WS_ORIGINS`",
        "not until that is fixed",
        "the token should be valid",
    ),
    CloseCode.IDLE: Close(
        "you followed no board for `WS_IDLE_TIMEOUT`",
        "when you want to follow one",
        "there are many: clients that connect and forget to subscribe",
    ),
}
"""The ends of a connection: the relay's own codes, and those of every WebSocket server."""


# Refusals: the label of a metric, the `reason` of a log line, and the HTTP status -----------------------------


class Refusal(NamedTuple):
    """What a reason means to operators."""

    answer: HTTPStatus | None
    """The HTTP status; None if the connection is closed without a response."""
    meaning: str


_CREDENTIAL: Final = Refusal(HTTPStatus.UNAUTHORIZED, "the token that was presented, or that none was")
_TLS: Final = Refusal(None, "`wss://` and `ws://` mixed up, or a client that does not trust the certificate")
_TOO_LARGE: Final = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "a cookie or a token over 8 KB, or headers over 32 KiB in all"
)
_PROXY: Final = Refusal(None, "a balancer that `WS_TRUSTED_PROXIES` does not name, or a header that cannot be read")
_FILES: Final = Refusal(None, "the limit of open files: see `relay check`")

REFUSALS: Final[Mapping[str, Refusal]] = {
    "too many connections a minute": Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        "`WS_RATE_LIMIT_PER_CLIENT` or `WS_RATE_LIMIT_TOTAL`; "
        "[a team behind one address](deployment.md#a-team-behind-one-address)",
    ),
    "too many connections": Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "`WS_MAX_CONNECTIONS`"),
    "too many connections of one address": Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE, "`WS_MAX_CONNECTIONS_PER_ADDRESS`"
    ),
    "the relay is stopping": Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "a drain"),
    "foreign origin": Refusal(
        HTTPStatus.UNAUTHORIZED, "a page that `WS_ORIGINS` does not allow; the line has its `origin`"
    ),
    "no origin": Refusal(HTTPStatus.UNAUTHORIZED, "`WS_REQUIRE_ORIGIN`"),
    "no credential": _CREDENTIAL,
    "wrong credential": _CREDENTIAL,
    "expired token": _CREDENTIAL,
    "unknown key": _CREDENTIAL,
    "wrong token: …": _CREDENTIAL,
    "no WebSocket upgrade": Refusal(
        HTTPStatus.UPGRADE_REQUIRED,
        "plain HTTP that is not for [events](events.md), or a proxy that drops `Upgrade` and `Connection`",
    ),
    "not HTTP/1.1": Refusal(
        HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
        "a proxy that speaks HTTP/1.0, nginx's default: set `proxy_http_version 1.1`",
    ),
    "not GET": Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "another method"),
    "address too long": Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "over 8 KB"),
    "header too long": _TOO_LARGE,
    "too many headers": _TOO_LARGE,
    "handshake too long": _TOO_LARGE,
    "bad handshake": Refusal(HTTPStatus.BAD_REQUEST, "a version or key that the protocol does not allow"),
    "no HTTP request": Refusal(
        HTTPStatus.BAD_REQUEST,
        "a body, an address that is not percent-encoded, or anything else; the line has `detail`",
    ),
    "TLS where none is spoken": _TLS,
    "no TLS where it is spoken": _TLS,
    "TLS handshake failed": _TLS,
    "PROXY header of an untrusted peer": _PROXY,
    "bad PROXY header": _PROXY,
    "handshake took too long": Refusal(None, "`WS_HANDSHAKE_TIMEOUT`"),
    "crowded out": Refusal(
        None, "too many pending connections: this was the oldest one of the address with the most"
    ),
    "no file left but the reserve": _FILES,
    "cannot accept: …": _FILES,
    "too much of unfinished messages": Refusal(
        None, "unfinished large messages, while other clients send such messages too"
    ),
}
"""By reason. `…` stands for a text with details."""


# Problems: phrases in what health and `feed.problem` report -----------------------------------------------------


class Problem(NamedTuple):
    """What a problem means to operators, and what to do."""

    meaning: str
    advice: str


PROBLEMS: Final[Mapping[str, Problem]] = {
    "Connection refused": Problem("Postgres is down", "nothing, if it comes back; otherwise check `DATABASE_URL`"),
    "is a standby": Problem("the server takes no writes", "name the primary in `DATABASE_URL`"),
    "sessions are read-only here": Problem(
        "`default_transaction_read_only` is on for the server, the database or the role", "the command that is named"
    ),
    "lacks the relay's tables and triggers": Problem("not installed, or an older version", "`relay sql install`"),
    "nothing is watched": Problem("no table is watched", "`relay sql watch`"),
    "are missing or disabled": Problem(
        "a trigger was dropped or disabled: clients miss what is written meanwhile, "
        "and get their boards when it is back",
        "`relay sql watch`",
    ),
    "permission denied": Problem("the role lacks rights", "`relay sql roles`, and connect as `relay_daemon`"),
    "row level security is on": Problem(
        "a policy would hide rows from `relay_reader`", "`alter role relay_reader bypassrls`"
    ),
    "journalling is paused": Problem(
        "the journal is full, and a transaction keeps it from being vacuumed",
        "end the transaction that `relay check` names, or raise `stop_bytes`",
    ),
    "reached different servers": Problem("a balancer in front of several primaries", "name one"),
    "a connection is silent": Problem("a half-open link", "nothing; the relay reconnects"),
    "no probe has come back": Problem("see [Health](monitoring.md#health)", "see there"),
}
"""By a phrase of the problem, the relay's or Postgres's."""
