"""Frames: the bytes of a message on the wire, made once for all clients. Pure.

Frames of a server carry no mask, so the same bytes serve every client. With compression, each message is compressed
without context, in both directions, so that one compressed message serves every client that inflates, and no client
costs the memory of a window.
"""

from __future__ import annotations

import zlib
from typing import Final

from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from relay.model.messages import Message

DEFLATE_BYTES: Final = range(256, 1024 * 1024)
"""Sizes of messages that are compressed. Smaller ones gain nothing, and larger ones would delay all boards."""

DEFLATE_LEVEL: Final = 3
"""Level of zlib. Higher ones take longer, and delay all boards."""

COMPRESSION: Final = (
    ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True),
)
"""The extension for compression."""


def frame(message: bytes) -> bytes:
    """Frame a text message."""
    return Frame(Opcode.TEXT, message).serialize(mask=False)


def deflated_frame(message: bytes) -> bytes:
    """Frame a text message for clients that inflate, compressed if that is worth it."""
    if len(message) not in DEFLATE_BYTES:
        return frame(message)
    extension = PerMessageDeflate(
        remote_no_context_takeover=True,
        local_no_context_takeover=True,
        remote_max_window_bits=zlib.MAX_WBITS,
        local_max_window_bits=zlib.MAX_WBITS,
        compress_settings={"level": DEFLATE_LEVEL},
    )
    return Frame(Opcode.TEXT, message).serialize(mask=False, extensions=[extension])


def plain(message: Message) -> bytes:
    """Frame a message."""
    return frame(message.json)


def deflated(message: Message) -> bytes:
    """Frame a message for clients that inflate."""
    return deflated_frame(message.json)


def inflates(protocol: ServerProtocol) -> bool:
    """Return whether a client can read `deflated_frame`, which needs the largest window."""
    return any(
        isinstance(extension, PerMessageDeflate) and extension.local_max_window_bits == zlib.MAX_WBITS
        for extension in protocol.extensions
    )
