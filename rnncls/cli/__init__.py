"""The command line: parse, call one function, print, map errors to exit codes.

Results go to stdout, everything else to stderr. torch is imported only inside the functions a command calls, so that
every --help answers at once. Each command has a file of its own.
"""

from rnncls.cli.app import main

__all__ = ["main"]
