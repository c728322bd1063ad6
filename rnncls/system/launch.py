"""What a launcher says of this process: its place among those that it has started.

torchrun says it in variables, which PyTorch calls RANK, WORLD_SIZE, LOCAL_RANK and so on; they may
also be set by hand. Importing this does not import torch.
"""

import hashlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rnncls.errors import MachineError, Problem

MAX_PORT = 2**16 - 1
MAX_PROCESSES = 2**20

# torchrun's own name of a launch that nobody has named. Two launches may have it.
_NAMELESS = "none"


class Launch(NamedTuple):
    """The place of this process: alone, unless a launcher has started several."""

    rank: int = 0
    size: int = 1  # number of processes
    local_rank: int = 0  # among those on this machine
    local_size: int = 1
    id: str = ""  # which launch, the same for all its processes and restarts; "" without torchrun
    restarts: int = 0  # how often torchrun has started all of them again


def launch_of(variables: Mapping[str, str] = os.environ) -> Launch:
    """Return what the variables of a launcher say.

    Raises: MachineError if they do not fit together.
    """
    if "RANK" not in variables and "WORLD_SIZE" not in variables:
        return Launch()
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name not in variables:
            raise _wrong(f"{other} is set without {name}", name)

    size = _number(variables, "WORLD_SIZE", 1, MAX_PROCESSES)
    rank = _number(variables, "RANK", 0, size - 1)
    # By hand, all are taken to be on one machine.
    local_size = size
    local_rank = rank
    if "LOCAL_WORLD_SIZE" in variables:
        local_size = _number(variables, "LOCAL_WORLD_SIZE", 1, size)
    if "LOCAL_RANK" in variables:
        local_rank = _number(variables, "LOCAL_RANK", 0, local_size - 1)
    elif local_rank >= local_size:
        raise _wrong("LOCAL_WORLD_SIZE is set without LOCAL_RANK", "LOCAL_RANK")

    restarts = 0
    if "TORCHELASTIC_RESTART_COUNT" in variables:
        restarts = _number(variables, "TORCHELASTIC_RESTART_COUNT", 0, MAX_PROCESSES)
    return Launch(rank, size, local_rank, local_size, _id_of(variables), restarts)


def meeting_place(variables: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Return the address and the port at which the processes of a launch meet.

    Raises: MachineError if the launcher does not say so.
    """
    address = variables.get("MASTER_ADDR")
    if not address:
        raise _wrong("WORLD_SIZE is above 1 without MASTER_ADDR", "MASTER_ADDR")
    return address, _number(variables, "MASTER_PORT", 1, MAX_PORT)


def _number(variables: Mapping[str, str], name: str, least: int, most: int) -> int:
    """Return the whole number that a variable holds. Raises: MachineError."""
    text = variables.get(name, "")
    # isdecimal admits no sign and no space; the length keeps Python from refusing many digits.
    is_number = text.isascii() and text.isdecimal() and len(text) <= 10
    if not is_number or not least <= int(text) <= most:
        what = f"{name} is not a number from {least:,} to {most:,}"
        raise _wrong(what, name, text or "nothing")
    return int(text)


def _wrong(what: str, name: str, found: str = "") -> MachineError:
    remedy = (
        "torchrun --standalone --nproc-per-node N -m rnncls ..., which sets all of them; for one "
        "process alone: unset RANK WORLD_SIZE"
    )
    return MachineError(Problem(what, name, found=found, remedy=remedy, id="R25"))


def _id_of(variables: Mapping[str, str]) -> str:
    """Return 16 hexadecimal digits for this launch of torchrun; "" without torchrun."""
    name = variables.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return ""
    if name == _NAMELESS:
        # All processes that one torchrun starts on this machine have it as their parent.
        name = f"{socket.gethostname()} {os.getppid()} {_begun(os.getppid())}"
    # A variable may hold bytes that are no text, which Python shows as halves of surrogate pairs.
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]


def _begun(pid: int) -> str:
    """Return when a process was started, in ticks of the system; "" where that is not known."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The 22nd field; the second one, a name in brackets, may have spaces.
    return status.rpartition(")")[2].split()[19]
