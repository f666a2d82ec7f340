"""What strangers can send, in all its forms, and in forms that it does not have."""
