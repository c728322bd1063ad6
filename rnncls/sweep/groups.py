"""Which members of a sweep train together, and how many of them at the same time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rnncls.steps.captured.stack import shape_of
from rnncls.steps.engines import why_not
from rnncls.sweep.plan import Member
from rnncls.system.device import resolve_device

MOST_STACKED = 128  # members in one stack


@dataclass(frozen=True)
class Group:
    """Members that train together: at the same time, as many as there are threads."""

    members: list[Member]
    threads: int
    stacked: bool = False


def plan_groups(members: Sequence[Member], jobs: int | None) -> list[Group]:
    """Decide which members train together.

    Members with compiled steps run in parallel threads. On CUDA, members of one shape train as
    one stack. All others run one after another.
    """
    parallel: list[Member] = []
    rest: list[Member] = []
    same_shape: dict[str, list[Member]] = {}
    for member in members:
        if _can_run(member, "compiled"):
            parallel.append(member)
            continue

        shape = shape_of(member.config) if _can_run(member, "captured") else None
        if shape is not None:
            same_shape.setdefault(shape.model_dump_json(), []).append(member)
        else:
            rest.append(member)

    groups = []
    for stackable in same_shape.values():
        groups += _stacks(stackable, jobs or MOST_STACKED)

    if parallel:
        available_cores = len(os.sched_getaffinity(0))
        threads = min(jobs or available_cores, len(parallel))
        groups.append(Group(parallel, threads))

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


def _can_run(member: Member, engine: str) -> bool:
    """Return whether the member's config and device allow this engine, and ask for no other."""
    config = member.config
    if config.train.engine not in ("auto", engine):
        return False
    return not why_not(engine, config, resolve_device(config.device))
