"""`relay demo`: a board that lives, without a database of one's own."""
