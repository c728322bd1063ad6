"""The memory of this process: what it has now, and the most that it had.

Linux says both, and can forget the most. Elsewhere only the most since the start is known.
"""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_FORGET = Path("/proc/self/clear_refs")

# In the environment of a process, it has glibc give each tensor of more than 16 KiB back to the
# system when it is freed. Otherwise freed memory stays in the process for the next tensors, more or
# less of it by chance, and the peak is that of what is needed and of what lies idle. Other C
# libraries do not know it. See mallopt(3).
GIVE_BACK_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(2**14)}


def resident_bytes() -> int:
    """Return what this process has in main memory; where that is unknown, the most it had."""
    return _of_status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Return the most that this process had in main memory, since `forget_peak`."""
    # Not ru_maxrss on Linux: a new process inherits that of the one that started it.
    return _of_status("VmHWM") or _peak_since_start()


def forget_peak() -> bool:
    """Make what there is now the most that there was; returns whether the system can do that."""
    try:
        _FORGET.write_text("5")
    # Another system, or a kernel or a container without it.
    except OSError:
        return False
    return True


def _peak_since_start() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    return most if sys.platform == "darwin" else most * 1024


def _of_status(name: str) -> int | None:
    """Return a figure of this process as the kernel names it, in bytes; None if there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
