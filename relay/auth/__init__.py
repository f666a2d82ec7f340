"""Access: which clients may connect, and which boards they may follow."""
