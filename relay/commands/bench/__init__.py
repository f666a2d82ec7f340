"""`relay bench`: measurements on the user's own server."""
