"""The codes and reasons that clients and operators meet, each with what it means. Pure.

The schema, the clients' guide and docs/reference.md are made of these words.
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
    "unknown_type": "a type that is none of the five",
    "invalid_board_id": (
        "a `boardId` that is missing, not a string, or holds U+0000; or that the database writes otherwise, "
        "such as a uuid in capitals: the message says how, and you do not follow it"
    ),
    "invalid_xid": "an `xid` that is missing, or no string of digits as `pg_current_xact_id()` gives it",
    "invalid_selection": (
        "`lanes` or `columns` that are no list of strings, `tasks` that are no list of ids, over 100 or over 2,048 "
        "characters of them together, or any without a `cursor`"
    ),
    "board_unavailable": (
        "a board that cannot be read at present: `boardId` says which. "
        "You stay subscribed, and its `board.sync` comes as soon as it can"
    ),
    "binary_message": "a binary message",
    "not_allowed": (
        "a board that you may not follow, or not any more: `boardId` says which. "
        "It does not say whether there is such a board"
    ),
    "not_authenticated": "a fresh token that is not good; the one before it still is",
    "not_subscribed": "`includes` for a board that you do not follow: `boardId` and `xid` say of what",
    "not_included": (
        "a transaction that was not over within half a minute, or whose database is another now, or crashed: "
        "`boardId` and `xid` say which"
    ),
    "too_many_boards": "one board more than `WS_MAX_BOARDS`: `boardId` says which",
    "too_many_waits": (
        "`includes` while 100 others wait on this connection, or 10,000 on all and your address has its share: "
        "`boardId` and `xid` say of what. A wait can also give way to that of another address"
    ),
    "too_many_selections": (
        "a selection that no other client has, while the relay has 1,000 and your address has its share: `boardId` "
        "says of which board. It can also come later, when another address needs its share: you do not follow the "
        "board any more"
    ),
    "too_many_messages": "more messages a second than `WS_MESSAGE_RATE`, or four seconds' worth at once",
}
"""What each error means."""

REASONS: Final[Mapping[Reason, str]] = {
    "cursor_invalid": "what you sent is no cursor of this board",
    "epoch_changed": "the database is another, or was installed again, restored, failed over, or crashed",
    "schema_changed": "columns, types, labels, partitions or triggers changed, perhaps while no relay was connected",
    "journal_pruned": "you were away for longer than the journal is kept",
    "too_much_missed": "the board is shorter than what was missed, by you or by the relay",
    "journalling_paused": "changes were no longer recorded, because no relay had read the journal for long",
    "batch_cut_short": "the relay lost Postgres in the midst of a large batch",
    "truncate": "the table was truncated",
    "resync": "the DBA asked for it",
    "lanes_changed": "a lane of the board was added, renamed, reordered or removed, or changed board",
    "extras_changed": "data of other tables that tasks show changed, for many tasks at once, or could not be read",
    "watch_changed": "what is fed, or how, was changed",
    "row_unreadable": "a row could not be recorded",
    "changes_missing": "what the journal has of a row fits no history: triggers were off for a while",
    "fell_behind": "you did not read what you were sent",
    "subscribed_again": (
        "you had followed this board on this connection already: changes may have crossed your cursor on the way"
    ),
}
"""Why a board is sent to a client that did not ask for all of it."""


class Close(NamedTuple):
    """What a close code means to a client, whether to come back, and when an operator should care."""

    meaning: str
    reconnect: str
    worth: str


_NOT_BEFORE: Final = "not before it is fixed"
_ANY: Final = "there are any: a broken client"

CLOSE_CODES: Final[Mapping[int, Close]] = {
    1000: Close("you closed it", "as you like", "never"),
    1002: Close(
        "a frame was not of the WebSocket protocol",
        _NOT_BEFORE,
        "there are many: somebody speaks something else, or a proxy garbles",
    ),
    1006: Close(
        "the connection broke, or no ping was answered for `WS_HEARTBEAT`",
        "yes, with growing pauses",
        "most end so: the network, or a proxy that closes silent connections",
    ),
    CloseCode.INVALID_TEXT: Close("a text message was not UTF-8", _NOT_BEFORE, _ANY),
    CloseCode.POLICY: Close(
        "20 bad messages in a row, or 5 tokens that are not good",
        _NOT_BEFORE,
        "there are any: a broken client, or somebody who tries tokens",
    ),
    CloseCode.TOO_BIG: Close("a message over 1 MiB", _NOT_BEFORE, _ANY),
    CloseCode.SERVICE_RESTART: Close(
        "the relay is stopping, perhaps to start again",
        "yes, after a random pause of up to a few seconds: another relay may be there already",
        "nobody stopped it",
    ),
    CloseCode.TRY_AGAIN_LATER: Close(
        "you read nothing of what you were sent for `WS_HEARTBEAT`",
        "yes, when you can read again",
        "many at once: a network that is too slow for what is written",
    ),
    CloseCode.TOKEN_EXPIRED: Close(
        "your token has expired", "yes, with a fresh one", "clients do not come back: they get no fresh ones"
    ),
    CloseCode.REFUSED: Close(
        "your token is not good, or not any more, or your page's origin is not in `WS_ORIGINS`",
        "not until that is fixed",
        "its token is good",
    ),
    CloseCode.IDLE: Close(
        "you followed no board for `WS_IDLE_TIMEOUT`",
        "when you want to follow one",
        "many: clients that connect and forget to subscribe",
    ),
}
"""How a connection ends: with one of the relay's codes, or with one that every WebSocket server has."""


# Refusals: the label of a metric, the `reason` of a log line, and what HTTP says -----------------------------


class Refusal(NamedTuple):
    """What a reason means to operators."""

    answer: HTTPStatus | None
    """What HTTP says; None where nothing can be said."""
    meaning: str


_CREDENTIAL: Final = Refusal(HTTPStatus.UNAUTHORIZED, "what was presented, or not")
_TLS: Final = Refusal(None, "`wss://` and `ws://` mixed up, or a client that does not trust the certificate")
_TOO_LARGE: Final = Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "a cookie or a token over 8 KB; over 32 KiB in all"
)
_PROXY: Final = Refusal(None, "a balancer that `WS_TRUSTED_PROXIES` does not name, or one that is not understood")
_FILES: Final = Refusal(None, "the limit of open files: `relay check`")

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
        HTTPStatus.UNAUTHORIZED, "a page that `WS_ORIGINS` does not name; the line has its `origin`"
    ),
    "no origin": Refusal(HTTPStatus.UNAUTHORIZED, "`WS_REQUIRE_ORIGIN`"),
    "no credential": _CREDENTIAL,
    "wrong credential": _CREDENTIAL,
    "expired token": _CREDENTIAL,
    "unknown key": _CREDENTIAL,
    "wrong token: …": _CREDENTIAL,
    "no WebSocket upgrade": Refusal(
        HTTPStatus.UPGRADE_REQUIRED,
        "plain HTTP that is not for [events](events.md), or a proxy that does not pass on `Upgrade` and `Connection`",
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
    "bad handshake": Refusal(HTTPStatus.BAD_REQUEST, "a version or a key that is not the protocol's"),
    "no HTTP request": Refusal(None, "anything else"),
    "TLS where none is spoken": _TLS,
    "no TLS where it is spoken": _TLS,
    "TLS handshake failed": _TLS,
    "PROXY header of an untrusted peer": _PROXY,
    "bad PROXY header": _PROXY,
    "handshake took too long": Refusal(None, "`WS_HANDSHAKE_TIMEOUT`"),
    "crowded out": Refusal(
        None, "too many connections on their way in: this one was the oldest of the fullest address"
    ),
    "no file left but the reserve": _FILES,
    "cannot accept: …": _FILES,
    "too much of unfinished messages": Refusal(
        None, "a client that sends large messages without ending them, while others do too"
    ),
}
"""By reason. `…` stands for a fixed text that says more."""


# Problems: parts of what health and `feed.problem` say --------------------------------------------------------


class Problem(NamedTuple):
    """What a problem means to operators, and what to do."""

    meaning: str
    advice: str


PROBLEMS: Final[Mapping[str, Problem]] = {
    "Connection refused": Problem("Postgres is away", "nothing, if it comes back; otherwise see `DATABASE_URL`"),
    "session is read-only": Problem("a standby, or a database set to read only", "name the primary; `relay check`"),
    "lacks the relay's tables and triggers": Problem("not installed, or an older version", "`relay sql install`"),
    "nothing is watched": Problem("no table is watched", "`relay sql watch`"),
    "are missing or disabled": Problem(
        "somebody dropped or disabled a trigger: clients miss what is written meanwhile, "
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
"""By words of the problem: those of the relay, or of Postgres."""
