"""Whether a launcher leaves a run the time to save.

torchrun kills its processes a certain time after it was stopped itself.
"""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rnncls.rundir.log import RunLog
from rnncls.system.launch import launch_of

# torchrun's own, in seconds, and the share of it that a save may take.
SHUTDOWN_TIMEOUT = 30.0
MOST_OF_SHUTDOWN = 2 / 3

_OPTION = "--shutdown-timeout"
# The second one stands for the option, and counts first.
_VARIABLES = ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "PET_SHUTDOWN_TIMEOUT")


class Saves:
    """Times what a run saves, and warns once if a launcher may kill the run before it is done."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._limit = math.inf
        # Only torchrun gives a launch an id.
        if launch_of().id:
            self._limit = MOST_OF_SHUTDOWN * shutdown_timeout(os.environ, _words_of_parent())

    def timed(self, save: Callable[[], object]) -> None:
        """Save."""
        started_at = time.perf_counter()
        save()
        seconds = time.perf_counter() - started_at
        if seconds > self._limit:
            self._log.say(_warning_of_save(seconds, self._limit / MOST_OF_SHUTDOWN))
            self._limit = math.inf


def shutdown_timeout(variables: Mapping[str, str], words: list[str]) -> float:
    """Return how many seconds torchrun gives its processes to end when it is stopped.

    `variables`: those of the environment. `words`: torchrun's command line, which counts first.
    """
    values = [variables.get(name, "") for name in _VARIABLES]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.replace("_", "-").partition("=")
        if name == _OPTION:
            values.append(value if equals else following)
    for value in reversed(values):
        if value.isascii() and value.isdecimal():
            return float(value)
    return SHUTDOWN_TIMEOUT


def _words_of_parent() -> list[str]:
    """Return the command line of the process that has started this one; nothing if unknown."""
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except (OSError, UnicodeDecodeError):
        return []


def _warning_of_save(seconds: float, timeout: float) -> str:
    # Imported only here: it is slow to import.
    from torch.distributed.run import get_args_parser

    remedy = "a faster disk for the run directory"
    if _OPTION in get_args_parser().format_help():
        remedy = f"torchrun {_OPTION} {math.ceil(3 * seconds)}"
    return (
        f"rnncls: warning: a save takes {seconds:.2g} s, and torchrun kills its processes "
        f"{timeout:g} s after it was stopped; try {remedy} (docs/distributed.md)"
    )
