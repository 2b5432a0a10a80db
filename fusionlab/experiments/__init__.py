"""Notebooks as experiments: the comparison that the demo notebook runs, and the command that runs it."""
