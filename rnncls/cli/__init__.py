"""The command line: parse, call one function, print, map errors to exit codes.

Results go to stdout, everything else to stderr. Each command has a file of its own. The commands
import torch, and modules that import it, only inside their functions, so that every --help answers
at once.
"""

from rnncls.cli.app import main

__all__ = ["main"]
