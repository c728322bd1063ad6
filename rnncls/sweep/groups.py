"""Decide which members of a sweep train together, and how many of them at the same time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rnncls.model.rules import LATEST, StepRules
from rnncls.steps.captured.stack import shape_of
from rnncls.steps.engines import why_not
from rnncls.sweep.plan import Member
from rnncls.system.device import resolve_device
from rnncls.system.machine import usable_cores

# Members in one stack. Each adds its weights, moments and padded blocks to the GPU's memory, and in
# every round the fastest member waits for the slowest.
MOST_STACKED = 128


@dataclass(frozen=True)
class Group:
    """Members that train together, `threads` of them at the same time."""

    members: list[Member]
    threads: int
    stacked: bool = False


def plan_groups(
    members: Sequence[Member], jobs: int | None, step_rules: StepRules = LATEST
) -> list[Group]:
    """Decide which members train together.

    Members with compiled steps run in parallel threads. On CUDA, members of one shape train as
    one stack. All others run one after another, and so do members that profile. `jobs`: the most
    that train at the same time. `step_rules`: those of the sweep.

    Raises: MachineError if a member asks for a device that is not there.
    """
    parallel: list[Member] = []
    rest: list[Member] = []
    same_shape: dict[str, list[Member]] = {}
    for member in members:
        # Also for engines that do not ask: a device that is not there ends the sweep here, before
        # any member begins, and not once for each member.
        device = resolve_device(member.config.device)

        # PyTorch has one profiler for the whole process: a second thread that starts or stops it
        # ends the process with a segmentation fault.
        if member.config.train.profile:
            rest.append(member)
            continue

        if _can_run(member, "compiled", device, step_rules):
            parallel.append(member)
            continue

        shape = None
        if _can_run(member, "stacked", device, step_rules):
            shape = shape_of(member.config)
        if shape is not None:
            # A config is not hashable; its JSON says the same.
            same_shape.setdefault(shape.model_dump_json(), []).append(member)
        else:
            rest.append(member)

    # Members of a stack wait for each other at every step, so each needs a thread: `jobs` bounds
    # the size of a stack.
    groups = []
    for stackable in same_shape.values():
        groups += _stacks(stackable, jobs or MOST_STACKED)

    if parallel:
        threads = min(jobs or usable_cores(), len(parallel))
        groups.append(Group(parallel, threads))

    # Eager steps hold Python's lock most of the time and use PyTorch's own threads; captured steps
    # share one GPU. Two such members at once would only slow each other down.
    if rest:
        groups.append(Group(rest, threads=1))
    return groups


def _stacks(members: list[Member], most: int) -> list[Group]:
    """Return stacks of at most `most` members each; a member that is left over trains alone."""
    stacks = []
    for first in range(0, len(members), most):
        part = members[first : first + most]
        stacks.append(Group(part, threads=len(part), stacked=len(part) > 1))
    return stacks


def _can_run(member: Member, engine: str, device: torch.device, step_rules: StepRules) -> bool:
    """Return whether the member's config and device allow this engine, and ask for no other.

    "stacked" are captured steps of several members in one.
    """
    config = member.config
    wanted = "captured" if engine == "stacked" else engine
    if config.train.engine not in ("auto", wanted):
        return False
    return not why_not(engine, config, device, step_rules)
