"""What an operator asks over HTTP, and the board page."""
