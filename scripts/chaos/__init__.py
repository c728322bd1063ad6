"""Disturb runs for real, then compare them with undisturbed ones: see __main__.py."""
