"""Autobahn's cases against the WebSocket endpoint, with an echo in place of the hub.

    make autobahn                          all of them: about five minutes
    make autobahn ARGS='"5.*" "7.1.5"'     some of them

The cases are those of Autobahn's test suite, the runner is kosoku. They want an echo server; the relay is none. So a
`Connection` that echoes takes the place of the relay's, and all below it is the relay's: sockets, handshake, framing,
compression, closing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final
from unittest import mock

import structlog
from kosoku import FailureError, run_fuzzingclient
from kosoku._kosoku import CaseResult
from websockets.frames import DATA_OPCODES, Frame, Opcode

from relay.hub.hub import Hub
from relay.hub.ports import BoardSource
from relay.model import messages
from relay.model.messages import CloseCode
from relay.websocket import frames, server
from relay.websocket.connection import Connection
from relay.websocket.limits import Memory

QUICK: Final = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
COMPRESSED: Final = ("12.*", "13.*")

CONCURRENCY: Final = 4
"""Number of cases that run at once. They are the runner's and ours in one process, so more are no faster."""

LARGEST_BYTES: Final = 16 * 1024 * 1024
"""The largest message of the cases."""

EXCEPTIONS: Final = {
    "7.1.5": "websockets takes a close frame amid the fragments of a message for a violation, and answers 1002",
}
"""Cases that may fail, and why."""


class Echo(Connection):
    """A connection that sends back what it receives.

    What the relay sends uncompressed, being short or binary, is compressed here: the runner takes no other answer.
    """

    __slots__ = ()

    def _receive(self, received: Frame) -> None:
        if received.opcode in DATA_OPCODES and (message := self._inbox.take(received)) is not None:
            self._echo(message)

    def _echo(self, message: bytes) -> None:
        opcode = Opcode.TEXT if self._inbox.is_text else Opcode.BINARY
        try:
            if opcode is Opcode.TEXT:
                message.decode()
        except UnicodeDecodeError:
            self._protocol.fail(CloseCode.INVALID_TEXT, "text that is not UTF-8")
            return
        if self.outbox.frame is frames.deflated and opcode is Opcode.TEXT and len(message) in frames.DEFLATE_BYTES:
            self.outbox.write(frames.deflated_frame(message))
        else:
            self.outbox.write(Frame(opcode, message).serialize(mask=False, extensions=self._protocol.extensions))


@contextlib.asynccontextmanager
async def echoing(*, compression: bool) -> AsyncIterator[str]:
    """Run the endpoint as an echo server; yield its address.

    Its heartbeat is longer than any case: a ping within the last ones ends them, which is the runner's. Its limits of
    sizes are those of the cases.
    """
    hub = Hub(mock.create_autospec(BoardSource))
    endpoint = server.Endpoint(hub, heartbeat=3600.0, max_connections=100, compression=compression)
    endpoint.shared.unfinished = Memory(CONCURRENCY * LARGEST_BYTES)
    with (
        mock.patch.object(server, "Connection", Echo),
        mock.patch.object(messages, "MAX_MESSAGE_BYTES", LARGEST_BYTES),
    ):
        await endpoint.open("127.0.0.1", 0)
        try:
            yield f"127.0.0.1:{endpoint.port}"
        finally:
            await endpoint.close()


async def run(cases: Sequence[str], *, compression: bool = False) -> list[CaseResult]:
    """Run cases; a name may end in a star."""
    async with echoing(compression=compression) as address:
        try:
            return await run_fuzzingclient(address, list(cases), [], concurrency=CONCURRENCY)
        except FailureError as failure:
            return list(failure.results)


def faults(results: Sequence[CaseResult]) -> dict[str, str]:
    """Return what was wrong with each case that failed, and is no exception."""
    return {
        each.case_id: f"{each.behavior.value}, closing {each.behavior_close.value}: {each.result}"
        for each in results
        if not each.passed and each.case_id not in EXCEPTIONS
    }


def _table(results: Sequence[CaseResult]) -> list[str]:
    """Count the results of each group."""
    groups: dict[str, Counter[str]] = {}
    for each in results:
        groups.setdefault(each.case_id.split(".")[0], Counter())[each.behavior.value] += 1
    return [f"{group:>5}  {dict(sorted(groups[group].items()))}" for group in sorted(groups, key=int)]


async def _main(wanted: Sequence[str]) -> int:
    results = []
    for cases, compression in ((QUICK, False), (COMPRESSED, True)):
        # What was asked for by hand is run as its group is.
        chosen = [each for each in wanted if f"{each.split('.')[0]}.*" in cases] if wanted else cases
        if chosen:
            results += await run(chosen, compression=compression)
    wrong = faults(results)
    failed = {each.case_id for each in results if not each.passed}
    known = [f"{name:>7} failed, as known: {reason}" for name, reason in EXCEPTIONS.items() if name in failed]
    unknown = [f"{name:>7} {problem}" for name, problem in wrong.items()]
    sys.stdout.write("\n".join([*_table(results), *known, *unknown, ""]))
    return 1 if wrong else 0


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    sys.exit(asyncio.run(_main(sys.argv[1:])))
