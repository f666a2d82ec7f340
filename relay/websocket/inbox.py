"""The inbox of a client: messages of which it has sent only a part.

Their total size over all clients is limited. Above the limit, a client that has more than `SMALL_BYTES` of them is
disconnected when it sends more; clients with less are spared.
"""

from __future__ import annotations

from typing import Final

from websockets.frames import Frame, Opcode

from relay.websocket.limits import Memory
from relay.websocket.outbox import PIECE_BYTES

SMALL_BYTES: Final = 2 * PIECE_BYTES
"""Size up to which an unfinished message never causes a disconnection."""


class Inbox:
    """The unfinished message of a client. `all_unfinished` counts those of all clients."""

    __slots__ = ("_all_unfinished", "_counted", "_partial", "is_text")

    def __init__(self, all_unfinished: Memory) -> None:
        self.is_text = True
        self._all_unfinished = all_unfinished
        self._counted = 0
        self._partial: bytearray | None = None

    @property
    def fits(self) -> bool:
        """Whether there is room for what it has; if not, the client must be disconnected."""
        return self._counted <= SMALL_BYTES or not self._all_unfinished.is_over

    def arrived(self, size: int) -> None:
        """Count bytes that may be part of a message."""
        self._count(self._counted + size)

    def take(self, received: Frame) -> bytes | None:
        """Add a frame; return the message if it is whole."""
        if received.opcode is not Opcode.CONT:
            self.is_text = received.opcode is Opcode.TEXT
        if received.fin and self._partial is None:
            return bytes(received.data)
        if self._partial is None:
            self._partial = bytearray()
        self._partial += received.data
        if not received.fin:
            return None
        message, self._partial = bytes(self._partial), None
        return message

    def settle(self) -> None:
        """Count only what is kept, after a frame was handled."""
        self._count(len(self._partial or b""))

    def discard(self) -> None:
        """Forget the unfinished message."""
        self._partial = None
        self._count(0)

    def _count(self, size: int) -> None:
        self._all_unfinished.used += size - self._counted
        self._counted = size
