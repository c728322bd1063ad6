"""The pictures of a sweep: a module each."""
