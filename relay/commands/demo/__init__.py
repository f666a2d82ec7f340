"""`relay demo`: a live board with its own throwaway database."""
