"""A change-feed relay: every committed change of a Postgres table, pushed to WebSocket subscribers."""

__version__ = "0.1.0"
"""The one place of the version: `make version NEW=…` changes it, and each copy that another format needs."""
