"""The fuzzed targets on their seeds, and on what hypothesis makes of these: the short version of `make fuzz`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS


@st.composite
def spoilt(draw: st.DrawFn, name: str) -> bytes:
    """Make an input: a seed that was cut, doubled, or spoilt by bytes of any kind or of another seed."""
    data = draw(st.sampled_from(SEEDS[name]))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, len(data)))
        between = draw(st.one_of(st.binary(max_size=20), st.sampled_from(SEEDS[name]), st.just(data[start:end] * 2)))
        data = data[:start] + between + data[end:]
    return data[:100_000]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_survived(name: str) -> None:
    """What is like what clients send does no harm."""
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_is_sent_is_survived(name: str) -> None:
    """And neither does what is not."""

    @settings(max_examples=200)
    @given(spoilt(name))
    def survive(data: bytes) -> None:
        TARGETS[name](data)

    survive()
