"""What a terminal shows while a command cannot answer yet."""

import sys
from pathlib import Path

LOADING = "loading torch ..."


def load_torch() -> None:
    """Import torch, which takes seconds; on a terminal, say so until it is there.

    Called before the first import of a module that needs torch. In a pipe nothing is printed.

    Raises: OSError if the current folder was deleted.
    """
    # Intel's library, which torch loads, would end the process with a message about other things.
    Path.cwd()

    if "torch" in sys.modules or not sys.stderr.isatty():
        return

    print(LOADING, end="", file=sys.stderr, flush=True)
    try:
        import torch  # noqa: F401
    finally:
        # Overwritten, so that whatever comes next begins in the first column.
        print(f"\r{' ' * len(LOADING)}\r", end="", file=sys.stderr, flush=True)
