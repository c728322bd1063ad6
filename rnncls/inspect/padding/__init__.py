"""One batch with padding in it, run in the ways that are common."""
