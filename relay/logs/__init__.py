"""The log: its lines, their limits, and the thread that writes them."""

from relay.logs.log import dropped, start, suppressed

__all__ = ["dropped", "start", "suppressed"]
