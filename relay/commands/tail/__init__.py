"""`relay tail`: shows a board's messages as they come, for people and for scripts."""
