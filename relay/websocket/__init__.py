"""Out: the sockets that clients connect to."""
