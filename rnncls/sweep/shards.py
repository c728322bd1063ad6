"""Which part of a sweep's members a process trains: as `--shard I/N` says, or its launcher.

Importing this does not import torch.
"""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from rnncls.errors import ConfigError, MachineError, Problem
from rnncls.system.launch import MAX_PROCESSES, launch_of
from rnncls.system.streams import say

AUTO = "auto"

_PROCESS_ID = "SLURM_PROCID"
_ELEMENT_ID = "SLURM_ARRAY_TASK_ID"


class _Place(NamedTuple):
    """The place of this process, counted from 0, among those that are started alike."""

    rank: int
    size: int


_ALONE = _Place(0, 1)


def shard_of(text: str, shared: bool, variables: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return (part, number of parts), the part counted from 1: "2/3" -> (2, 3).

    "auto" is what torchrun or Slurm says in `variables`, and 1/1 without either, which is said.
    `shared`: whether the sweep's folder was named, so that all processes have the same one.

    Raises: ConfigError for another text, and for "auto" without a folder that was named.
    MachineError if the variables make no sense.
    """
    if text != AUTO:
        part = _parse(text)
        _warn_of_equals(part, variables)
        return part
    if not shared:
        what = "--shard auto without a folder that all processes share"
        remedy = "--sweep-dir FOLDER, or --resume SWEEP"
        raise ConfigError(Problem(what, remedy=remedy, id="C17"))

    place = _place_of(variables)
    if place is None:
        say("rnncls: --shard auto is 1/1: there are no variables of torchrun or Slurm")
        place = _ALONE
    return place.rank + 1, place.size


def _warn_of_equals(part: tuple[int, int], variables: Mapping[str, str]) -> None:
    """Say once if torchrun has started several processes, each of which has all members to train.

    Nobody but torchrun sets all three variables: whoever shares the members in another way is left
    alone.
    """
    size = variables.get("WORLD_SIZE", "1")
    is_first = variables.get("RANK") == "0" and "TORCHELASTIC_RUN_ID" in variables
    if part == (1, 1) and is_first and size != "1":
        say(
            f"rnncls: warning: each of {size} processes goes through all members; --shard auto "
            "shares them"
        )


def _parse(text: str) -> tuple[int, int]:
    # At most six digits: the number of members is bounded, too.
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if match:
        number = int(match[1])
        num_shards = int(match[2])
        if 1 <= number <= num_shards:
            return number, num_shards

    what = "bad value for --shard"
    expected = "i/n with i from 1 to n, or auto"
    raise ConfigError(Problem(what, expected=expected, found=text, id="C17"))


def _place_of(variables: Mapping[str, str]) -> _Place | None:
    """Return the place that a launcher gives this process; None without one. Raises: MachineError.

    The ranks of torchrun come first. They may span several jobs of Slurm, whose own numbers would
    then leave parts out.
    """
    if "RANK" in variables or "WORLD_SIZE" in variables:
        names = ("RANK", "WORLD_SIZE")
        known = {name: variables[name] for name in names if name in variables}
        launch = launch_of(known)
        return _Place(launch.rank, launch.size)

    if _ELEMENT_ID not in variables and not _is_task(variables):
        return None
    element = _element(variables) if _ELEMENT_ID in variables else _ALONE
    task = _task(variables) if _is_task(variables) else _ALONE
    return _Place(element.rank * task.size + task.rank, element.size * task.size)


def _element(variables: Mapping[str, str]) -> _Place:
    """Return which element of an array of jobs this is. Raises: MachineError."""
    least = _number(variables, "SLURM_ARRAY_TASK_MIN", 0)
    step = _number(variables, "SLURM_ARRAY_TASK_STEP", 1)
    count = _number(variables, "SLURM_ARRAY_TASK_COUNT", 1)
    most = least + step * (count - 1)

    # Slurm also takes lists such as 1,3,7. No part of the sweep would have the place of the 5.
    name = "SLURM_ARRAY_TASK_MAX"
    if name in variables and _number(variables, name, 0) != most:
        raise _wrong(name, f"{most:,}, as of an evenly spaced array", variables[name])

    number = _number(variables, _ELEMENT_ID, least, most)
    if (number - least) % step:
        raise _wrong(_ELEMENT_ID, f"{least:,} and then every {step:,}", variables[_ELEMENT_ID])
    return _Place((number - least) // step, count)


def _is_task(variables: Mapping[str, str]) -> bool:
    """Return whether this is a task of srun.

    The script of a job has the variables of one, too, but runs only once however many tasks the
    job may have. It is no step of the job.
    """
    in_script = "SLURM_JOB_ID" in variables and "SLURM_STEP_ID" not in variables
    return _PROCESS_ID in variables and not in_script


def _task(variables: Mapping[str, str]) -> _Place:
    """Return which task of srun this is. Raises: MachineError."""
    # Of this step. The other one may be that of the whole job, which has several steps.
    name = "SLURM_STEP_NUM_TASKS"
    if name not in variables:
        name = "SLURM_NTASKS"
    count = _number(variables, name, 1)
    return _Place(_number(variables, _PROCESS_ID, 0, count - 1), count)


def _number(
    variables: Mapping[str, str], name: str, least: int, most: int = MAX_PROCESSES * 64
) -> int:
    """Return the whole number that a variable of Slurm holds. Raises: MachineError."""
    text = variables.get(name, "")
    is_number = text.isascii() and text.isdecimal() and len(text) <= 10
    if not is_number or not least <= int(text) <= most:
        raise _wrong(name, f"a number from {least:,} to {most:,}", text or "nothing")
    return int(text)


def _wrong(name: str, expected: str, found: str) -> MachineError:
    what = f"{name} does not say which part --shard auto is"
    remedy = "--shard I/N"
    return MachineError(
        Problem(what, name, expected=expected, found=found, remedy=remedy, id="R25")
    )
