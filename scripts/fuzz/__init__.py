"""Broken inputs of every kind; see `__main__`."""
