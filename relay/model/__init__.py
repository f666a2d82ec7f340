"""The vocabulary that everything else speaks. Pure: no I/O, no clock."""
