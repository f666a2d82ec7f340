"""`relay check`: examines everything that the daemon needs, and says what is wrong and what to do about it."""
