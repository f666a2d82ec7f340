"""In: how changes come from a database."""
