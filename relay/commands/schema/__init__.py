"""`relay schema`: prints the messages, and the tasks of a table, for machines."""
