"""What this machine has: a system that rnncls runs on, and cores to compute with.

rnncls needs a POSIX system. Linux and macOS differ in what they offer; wherever the package uses
something that one of them lacks, it asks here, or in `files`, and there is one fallback.
"""

import os
import sys

from rnncls.errors import MachineError, Problem


def require_posix() -> None:
    """Raise MachineError on Windows, which has neither the locks nor the signals of a run."""
    if sys.platform != "win32":
        return
    raise MachineError(
        Problem(
            "rnncls does not run on Windows itself, but in WSL2",
            expected="Linux or macOS",
            found="Windows",
            remedy="wsl --install, and install rnncls in there; it sees the GPU and your files",
            id="R34",
        )
    )


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1."""
    # In a container, or under taskset, they can be fewer than the machine has. macOS cannot tell.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
