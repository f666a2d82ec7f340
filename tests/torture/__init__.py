"""The proof: writers, clients and faults at random, and an oracle that knows what must have been delivered."""
