"""A change-feed relay: every committed change of a Postgres table, pushed to WebSocket subscribers."""
