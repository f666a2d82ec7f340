"""The processes: how they start, work together and stop."""
