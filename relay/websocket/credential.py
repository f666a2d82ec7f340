"""The credential of an admitted client: what it allows, and until when.

Rules:
- It is kept as long as the connection, to be checked again when the valid credentials change. It is never logged.
- If no credential is configured, none is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from relay.auth.gate import Gate
from relay.auth.tokens import Grant
from relay.model.messages import CloseCode

CHECK_SECONDS: Final = 30.0
"""Maximum interval at which the wall clock is compared with a token's expiry, because the clock may be changed."""

Ended = Callable[[CloseCode, str], None]
"""Called with the reason when a credential is no longer valid."""


class Credential:
    """A credential that a client presented, and the grant that it gives. `ended` is called when it has expired."""

    __slots__ = ("_ended", "_gate", "_presented", "_timer", "grant")

    def __init__(self, gate: Gate, presented: str | None, grant: Grant, ended: Ended) -> None:
        self.grant = grant
        self._gate = gate
        self._ended = ended
        self._presented = None if gate.access.open else presented
        self._timer: asyncio.TimerHandle | None = None
        self._expire()

    def check(self) -> Grant:
        """Return its grant by the credentials that are valid now. Raises Refused."""
        return self._gate.access.grant(self._presented)

    def present(self, token: str) -> Grant:
        """Return the grant of another token, and keep the token. Raises Refused."""
        grant = self._gate.access.grant(token)
        self._presented = None if self._gate.access.open else token
        return grant

    def take(self, grant: Grant) -> bool:
        """Apply another grant; return False if it allows the same."""
        same = grant.allows_as(self.grant)
        self.grant = replace(self.grant, expires=grant.expires) if same else grant
        self._expire()
        return not same

    def forget(self) -> None:
        """Stop the timer."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """Report that it has expired, or set the timer again."""
        self.forget()
        if self.grant.expires is None:
            return
        left = self.grant.expires - time.time()
        if left <= 0:
            self._ended(CloseCode.TOKEN_EXPIRED, "the token has expired")
        else:
            self._timer = asyncio.get_running_loop().call_later(min(left, CHECK_SECONDS), self._expire)
