"""`relay tail`: shows a board's messages as they arrive, for people and for scripts."""
