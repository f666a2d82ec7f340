"""The HTTP side for operators: health, metrics and the board page."""
