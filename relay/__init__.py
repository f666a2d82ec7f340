"""A change-feed relay: every committed change of a Postgres table, pushed to WebSocket subscribers."""

__version__ = "0.1.0"
"""A copy of pyproject.toml's, for the program need not be installed to know it."""
