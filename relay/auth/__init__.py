"""Access: which clients may connect, and to which boards."""
