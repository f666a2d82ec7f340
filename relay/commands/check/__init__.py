"""`relay check`: examines all that the daemon needs, and says of each thing how it is and what to do about it."""
