"""Reads files: from bytes to the rows of a table, or the objects of JSON."""
