"""Across: boards and their subscribers. No sockets, no Postgres."""
