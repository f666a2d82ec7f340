"""Examines the stream, if clients are served from NATS."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from relay.commands.check.core import Check, Place, Verdict, failed, halves, ok
from relay.daemon.errors import StartError, nats_installed
from relay.nats.stream import State, decode

if TYPE_CHECKING:
    from relay.nats.jetstream import Stream


async def _nats(place: Place) -> Verdict:
    try:
        with nats_installed("SERVE_FROM"):
            from relay.nats.connection import StreamError  # noqa: PLC0415  # an optional dependency
            from relay.nats.jetstream import Stream  # noqa: PLC0415
    except StartError as ex:
        return failed(*halves(str(ex)))
    settings = place.settings
    try:
        place.stream = await place.lifetime.enter_async_context(Stream.open(settings, settings.SERVE_FROM, "check"))
        bounds, found = await place.stream.bounds(), await place.stream.last_state()
    except StreamError as ex:
        return failed(
            str(ex), "see that NATS runs and lets this user in, that relay publish runs, and what SERVE_FROM says"
        )
    if found is None:
        return failed(f"stream {settings.NATS_STREAM} is empty", "start relay publish")
    return ok(f"stream {settings.NATS_STREAM} has entries {bounds.first} to {bounds.last}")


async def _publisher(place: Place) -> Verdict:
    assert place.stream, "NATS was checked before"
    began = time.perf_counter()
    if await _publisher_answers(place.stream):
        return ok(f"one answers, after {(time.perf_counter() - began) * 1000:.1f} ms")
    hint = "start relay publish; let this user publish to, and that of the publisher subscribe to, NAME.ask.>"
    return failed("no publisher answers", hint)


async def _publisher_answers(stream: Stream) -> bool:
    found = await stream.last_state()
    state = found and decode(found[1])
    return isinstance(state, State) and bool(await stream.questions.ask(state.asked_at, "may_read", b'[[{}, ""]]'))


CHECKS: Final = (
    Check(
        "nats",
        _nats,
        "with `SERVE_FROM`: NATS lets the user in, and the stream has entries",
        "`SERVE_FROM`; start `relay publish`",
        gate=True,
    ),
    Check(
        "publisher",
        _publisher,
        "with `SERVE_FROM`: a publisher answers",
        "start `relay publish`; allow what deploy/nats.conf allows",
    ),
)
