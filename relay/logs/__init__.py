"""The log: what a line is, how many are written, and the thread that writes them."""

from relay.logs.log import dropped, start, suppressed

__all__ = ["dropped", "start", "suppressed"]
