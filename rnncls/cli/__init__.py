"""The command line: parse, call one function, print, map errors to exit codes.

Results go to stdout, everything else to stderr. Each command has a file of its own. The commands
import torch, and modules that import it, only inside their functions, so that every --help answers
at once.
"""

import sys

from rnncls.errors import MachineError
from rnncls.system.machine import require_posix


def main() -> None:
    """Run the command line. On a system that rnncls cannot run on, say so and exit with 5."""
    # Before anything else is imported: on Windows an import of what it lacks would be the answer.
    try:
        require_posix()
    except MachineError as error:
        print(error.render(), file=sys.stderr)
        sys.exit(error.exit_code)

    from rnncls.cli.entry import main as run_command_line

    run_command_line()


__all__ = ["main"]
