"""Who may connect, and to which boards."""
