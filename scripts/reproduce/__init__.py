"""RESULTS.md from sweeps: see `__main__`."""
