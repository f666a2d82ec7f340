"""Commands: executes the messages of a client, as far as its credential allows, on the hub.

Rules:
- The token, and perhaps the database, decides which boards a client may follow. While the database has not answered,
  the client waits, and its last command about the board counts.
- A bad message is answered. Only a client that sends many in a row is disconnected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from relay.auth.gate import Gate, Visitor
from relay.auth.rates import Bucket
from relay.auth.tokens import Grant, Refused
from relay.hub.hub import Hub
from relay.model import messages
from relay.model.messages import BadMessage, CloseCode, Message
from relay.model.selection import selected
from relay.websocket.credential import Credential
from relay.websocket.decisions import Asking, Decisions
from relay.websocket.limits import Limits
from relay.websocket.outbox import Outbox
from relay.websocket.refusals import Refusals

log = structlog.get_logger()

NOT_ALLOWED: Final = "this board may not be followed"
"""The error for a board that may not be followed, whether it exists or not."""

TOO_MANY_SELECTIONS: Final = "there is no room for one more selection: select what others do, or the whole board"
"""The error for more selections than the relay serves, or than the address's share."""

MAX_BAD_TOKENS: Final = 5
"""Maximum number of bad tokens on one connection, so that guessing is no faster than by handshakes."""

MAX_WAITS: Final = 100
"""Maximum number of transactions that one connection waits for."""

MESSAGE_BURST: Final = 4
"""Number of seconds' worth of messages that may arrive at once."""

LOGGED_CHARACTERS: Final = 100
"""Maximum length of a board's name in the log."""

Close = Callable[[CloseCode, str], None]
"""Begins to close a connection."""


class Failed(Exception):
    """The client violated the protocol; its connection must be closed at once."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Services:
    """The services that execute commands. Without `decisions`, tokens alone decide about boards."""

    hub: Hub
    gate: Gate
    limits: Limits
    refusals: Refusals
    decisions: Decisions | None = None


class Client(Asking):
    """An admitted client."""

    __slots__ = (
        "_address",
        "_bad_messages",
        "_bad_tokens",
        "_close",
        "_credential",
        "_idle_since",
        "_outbox",
        "_rate",
        "_services",
        "_wanted",
        "name",
    )

    def __init__(
        self, services: Services, name: str, outbox: Outbox, close: Close, visitor: Visitor, grant: Grant
    ) -> None:
        self.name = name
        self._address = visitor.address
        self._services = services
        self._outbox = outbox
        self._close = close
        # Subscriptions that wait for a decision, by board.
        self._wanted: dict[str, messages.Subscribe] = {}
        self._rate: Bucket | None = None
        self._idle_since: float | None = None
        self._bad_messages = 0
        self._bad_tokens = 0
        self._credential = Credential(services.gate, visitor.credential, grant, self._end_grant)

    # Its messages

    def receive(self, message: bytes, *, text: bool) -> None:
        """Execute a message, or answer a bad one. Raises Failed."""
        try:
            self._count()
            if not text:
                raise BadMessage("binary_message", "found a binary message: expected text")  # noqa: TRY301
            self._act(messages.parse(message.decode()))
            self._bad_messages = 0
        except UnicodeDecodeError:
            raise Failed(CloseCode.INVALID_TEXT, "text that is not UTF-8") from None
        except BadMessage as ex:
            self._refuse(ex)

    def receive_frame(self) -> None:
        """Count a frame that is not a message, but as much work. Raises Failed."""
        try:
            self._count()
        except BadMessage as ex:
            self._refuse(ex)

    def leave(self) -> None:
        """Stop following all boards."""
        self._services.hub.leave(self._outbox)

    def end(self) -> None:
        """Forget everything about a connection that has ended."""
        self._credential.forget()
        if self._services.decisions:
            self._services.decisions.forget(self)
        self.leave()

    def is_idle(self, now: float) -> bool:
        """Return whether it has followed no board for too long."""
        if not (most := self._services.limits.idle_seconds):
            return False
        if self._boards():
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return self._idle_since is not None and now - self._idle_since >= most

    def _act(self, message: messages.ClientMessage) -> None:
        match message:
            case messages.Ping():
                self._answer(messages.PONG)
            case messages.Subscribe():
                self._subscribe(message)
            case messages.Unsubscribe(board_id=board):
                self._unsubscribe(board)
            case messages.Includes():
                self._await(message)
            case messages.Authenticate(token=token):
                self._authenticate(token)

    def _subscribe(self, message: messages.Subscribe) -> None:
        board, most = message.board_id, self._services.limits.boards
        if most is not None:
            boards = self._boards()
            if board not in boards and len(boards) >= most:
                raise BadMessage("too_many_boards", f"{most} boards are followed already: expected no more", board)
        if not self._credential.grant.names(board):
            raise BadMessage("not_allowed", NOT_ALLOWED, board)
        if self._services.decisions:
            self._wanted[board] = message
            self._services.decisions.ask(self, board, self._credential.grant)
        else:
            self._follow(message)

    def _follow(self, message: messages.Subscribe) -> None:
        board = message.board_id
        name = selected(message.lanes, message.columns, message.tasks).of(board)
        if self._services.hub.make_room_for(self._outbox, name):
            self._join(message, name)
        else:
            self._reject(BadMessage("too_many_selections", TOO_MANY_SELECTIONS, board))

    def _join(self, message: messages.Subscribe, name: str) -> None:
        log.info("websocket.subscribe", clientId=self.name, board=message.board_id[:LOGGED_CHARACTERS])
        # A cursor that is not text is treated as an invalid one.
        cursor = message.cursor
        text = cursor if cursor is None or isinstance(cursor, str) else ""
        self._services.hub.subscribe(self._outbox, name, resumable=message.resumable, cursor=text)

    def _unsubscribe(self, board: str) -> None:
        log.info("websocket.unsubscribe", clientId=self.name, board=board[:LOGGED_CHARACTERS])
        self._wanted.pop(board, None)
        if self._services.decisions:
            self._services.decisions.withdraw(self, board)
        self._services.hub.unsubscribe(self._outbox, board)

    def _await(self, message: messages.Includes) -> None:
        board, xid = message.board_id, message.xid
        if board not in self._boards():
            raise BadMessage("not_subscribed", "this board is not followed: subscribe first", board, xid)
        if self._services.hub.waits(self._outbox) >= MAX_WAITS:
            raise BadMessage(
                "too_many_waits", f"{MAX_WAITS} transactions are waited for: expected no more", board, xid
            )
        if not self._services.hub.make_room_for_wait(self._outbox):
            raise BadMessage("too_many_waits", "too many transactions are waited for: expected no more", board, xid)
        self._services.hub.includes(self._outbox, board, int(xid))

    def _authenticate(self, token: str) -> None:
        try:
            grant = self._credential.present(token)
        except Refused as ex:
            self._services.refusals.add(str(ex), self._address)
            self._bad_tokens += 1
            if self._bad_tokens >= MAX_BAD_TOKENS:
                raise Failed(CloseCode.POLICY, f"{self._bad_tokens} tokens that are not good") from None
            raise BadMessage("not_authenticated", "the token is not good: the one before it still is") from None
        self._answer(messages.AUTHENTICATED)
        self._take(grant)

    # Its rights

    def decided(self, board: str, grant: Grant, *, may: bool) -> None:
        """Follow a requested board, refuse it, or revoke it.

        A decision about an earlier token does not count: everything was asked again when the current one came.
        """
        if not grant.allows_as(self._credential.grant) or not self._outbox.is_open:
            return
        if (message := self._wanted.pop(board, None)) is None:
            if not may:
                self._revoke(board)
        elif may and grant.names(board):
            self._follow(message)
        else:
            self._services.hub.unsubscribe(self._outbox, board)
            self._reject(BadMessage("not_allowed", NOT_ALLOWED, board))

    def ask_again(self) -> int:
        """Ask the database again about every board that it follows or waits for; return their number."""
        if self._services.decisions is None:
            return 0
        boards = self._boards()
        for board in boards:
            self._services.decisions.ask(self, board, self._credential.grant)
        return len(boards)

    def check_grant(self) -> None:
        """Check the credential again; close the connection if it is no longer valid."""
        if not self._outbox.is_open:
            return
        try:
            grant = self._credential.check()
        except Refused:
            self._end_grant(CloseCode.REFUSED, "the token is not good any more")
        else:
            self._take(grant)

    def _take(self, grant: Grant) -> None:
        """Apply another grant. The database is asked only if the grant differs."""
        if not self._credential.take(grant):
            return
        for board in self._services.hub.following(self._outbox):
            if not grant.names(board):
                self._revoke(board)
        asked = self.ask_again()
        if rate := self._bucket():
            rate.spend(asked)  # each question is as much work as a message

    def _revoke(self, board: str) -> None:
        """End the subscription of a board, and send an error."""
        if board in self._services.hub.following(self._outbox):
            self._services.hub.unsubscribe(self._outbox, board)
            log.info("websocket.revoked", clientId=self.name, board=board[:LOGGED_CHARACTERS])
            self._answer(messages.error("not_allowed", NOT_ALLOWED, board))

    def _end_grant(self, code: CloseCode, reason: str) -> None:
        log.info("websocket.dropped", clientId=self.name, reason=reason)
        self.leave()
        self._close(code, reason)

    # Its limits

    def _boards(self) -> set[str]:
        """Return the boards that it follows or waits for."""
        return {*self._services.hub.following(self._outbox), *self._wanted}

    def _bucket(self) -> Bucket | None:
        if self._rate is None and (rate := self._services.limits.messages_a_second):
            self._rate = Bucket(rate, MESSAGE_BURST * rate)
        return self._rate

    def _count(self) -> None:
        """Count a message against the rate limit. Raises BadMessage."""
        if not (bucket := self._bucket()):
            return
        if bucket.wait(asyncio.get_running_loop().time()):
            most = self._services.limits.messages_a_second
            raise BadMessage("too_many_messages", f"found more than {most} messages a second: expected fewer")
        bucket.spend()

    def _refuse(self, bad: BadMessage) -> None:
        """Answer a bad message. Raises Failed if there were too many in a row."""
        self._reject(bad)
        if self._bad_messages >= messages.MAX_BAD_MESSAGES:
            raise Failed(CloseCode.POLICY, f"{self._bad_messages} bad messages in a row")

    def _reject(self, bad: BadMessage) -> None:
        log.info("websocket.error", clientId=self.name, code=bad.code, message=str(bad))
        self._send_error(bad)
        self._bad_messages += 1

    def _send_error(self, bad: BadMessage) -> None:
        self._answer(messages.error(bad.code, str(bad), bad.board, bad.xid))

    def _answer(self, message: Message) -> None:
        self._outbox.write(self._outbox.frame(message))
