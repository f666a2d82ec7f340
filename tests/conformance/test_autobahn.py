"""The WebSocket endpoint does what Autobahn's cases ask for."""

from __future__ import annotations

import pytest

from tests.conformance.autobahn import EXCEPTIONS, QUICK, faults, run


async def test_the_endpoint_conforms_to_the_websocket_protocol() -> None:
    """Framing, pings, fragments, UTF-8, closing and large messages; the exceptions are listed with their reasons."""
    results = await run(QUICK)

    assert faults(results) == {}
    assert len(results) == 301
    assert {each.case_id for each in results} >= set(EXCEPTIONS)


@pytest.mark.filterwarnings("ignore:unclosed file .*testdata:ResourceWarning")  # the cases leave their files open
async def test_the_endpoint_conforms_with_compression_on() -> None:
    """A sample of the cases of compression, a thousand messages each; `make autobahn` runs all."""
    results = await run(("12.1.1", "12.1.3", "13.1.1"), compression=True)

    assert faults(results) == {}
    assert [each.behavior.value for each in results] == ["OK"] * 3
