"""Train and evaluate the members of a sweep in one process.

A member is the run that `rnncls train` makes of its config: same code, same batches, same files.
Members with compiled steps run in parallel threads, because compiled code does not hold Python's
lock, and are the same to the bit. On CUDA, members of one shape train as one stack (see
`steps.captured.stack`), and are the same up to rounding. All others run one after another.
"""

import itertools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from rnncls.errors import (
    ConfigError,
    Interrupted,
    MachineError,
    NonFiniteError,
    Problem,
    RnnclsError,
    WriteError,
)
from rnncls.rundir.checkpoint_files import step_files
from rnncls.rundir.events import reporting_disk_errors_later
from rnncls.rundir.lock import is_locked
from rnncls.rundir.paths import CHECKPOINTS
from rnncls.rundir.status import read_status
from rnncls.steps.captured.stack import Stack, shape_of
from rnncls.steps.engines import why_not
from rnncls.sweep.plan import Member, Sweep, require_unchanged
from rnncls.sweep.results import (
    evaluate_member,
    read_evaluation,
    trained_accuracy,
    write_evaluation,
)
from rnncls.system.device import resolve_device
from rnncls.system.signals import StopRequest, stop_requests
from rnncls.training.fit import Shared, fit
from rnncls.training.resume import resume

MOST_STACKED = 128  # members in one stack
SIGNAL_SECONDS = 0.2  # how soon members that wait for a thread hear of a signal


@dataclass(frozen=True)
class Group:
    """Members that train together: at the same time, as many as there are threads."""

    members: list[Member]
    threads: int
    stacked: bool = False


class InUse(MachineError):
    """Another process trains this member."""


def run_sweep(
    sweep: Sweep, shard: tuple[int, int] = (1, 1), jobs: int | None = None
) -> list[tuple[Member, RnnclsError]]:
    """Train and evaluate the members that are not done yet, and return those that failed, and why.

    `shard`: which part of the members, counted from 1, and of how many parts. `jobs`: how many
    members train at the same time; None for as many as there are cores. A member that fails, for
    example because it diverges, does not stop the others. A member that another process trains is
    left to that process.

    Raises: Interrupted after a signal, once every member has saved. CheckpointError if the data
    has changed. WriteError if the disk is full; the sweep can be resumed.
    """
    require_unchanged(sweep)
    members = _members_of_shard(sweep, shard)

    progress = _Progress(members)
    with stop_requests() as stop, reporting_disk_errors_later(), progress.bar:
        for group in plan_groups(members, jobs):
            _run_group(sweep, group, stop, progress)
            if stop.number is not None:
                raise _interrupted(sweep, stop.number)
    return progress.failed


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


def _members_of_shard(sweep: Sweep, shard: tuple[int, int]) -> list[Member]:
    number, num_shards = shard
    return sweep.members[number - 1 :: num_shards]


class _Progress:
    """The bar of a sweep and the counts beside it. `update` is called from the members' threads."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.num_members = len(members)
        self.solved = 0
        self.failed: list[tuple[Member, RnnclsError]] = []

        total = sum(member.config.train.max_steps for member in members)
        self.bar = tqdm(total=total, unit="step", disable=None, dynamic_ncols=True)
        self.lock = threading.Lock()

    def update(self, steps: int) -> None:
        # tqdm adds to its count without a lock: two threads at once would lose steps.
        with self.lock:
            self.bar.update(steps)

    def show_counts(self) -> None:
        counts = f"{self.solved} solved, {len(self.failed)} failed of {self.num_members}"
        self.bar.set_postfix_str(counts)


def _run_group(sweep: Sweep, group: Group, stop: StopRequest, progress: _Progress) -> None:
    """Train and evaluate the members of a group, until each has ended or saved.

    Raises the first error that concerns more than one member, after all others have saved.
    """
    fatal: BaseException | None = None

    # Leaving the pool waits for every thread, so nothing is raised while a member still trains.
    with ThreadPoolExecutor(group.threads) as pool:
        running = _submit(pool, sweep, group, stop, progress)
        for future, member in _as_they_end(running, stop):
            error = future.exception()
            if error is None:
                progress.solved += future.result()
            elif isinstance(error, InUse | Interrupted):
                continue
            elif isinstance(error, RnnclsError) and not isinstance(error, WriteError):
                # Without its traceback, whose frames would keep the weights of every failed member.
                progress.failed.append((member, error.with_traceback(None)))
            else:
                # A full disk or a bug ends the sweep: the others are asked to save and end, too.
                # They end as Interrupted, so the first such error is the one to raise.
                fatal = fatal or error
                stop.handle(signal.SIGTERM, None)
            progress.show_counts()

    if fatal is not None:
        raise fatal


def _submit(
    pool: ThreadPoolExecutor, sweep: Sweep, group: Group, stop: StopRequest, progress: _Progress
) -> dict[Future[bool], Member]:
    """Hand the members of a group to the pool's threads."""
    running: dict[Future[bool], Member] = {}
    seats = Stack(len(group.members)).members if group.stacked else []
    try:
        for member, seat in itertools.zip_longest(group.members, seats):
            shared = Shared(
                stop=stop.member(),
                report_steps=progress.update,
                engine=seat.steps if seat else None,
                compared=("seed", *member.values),
            )
            future = pool.submit(_run_member, sweep, member, shared)
            running[future] = member

            # A stack takes a step when every seat that is not left waits for one. A member that is
            # cancelled, or fails before its first step, must leave its seat, or all others hang.
            if seat:
                future.add_done_callback(seat.leave)
    except RuntimeError:
        # The system gives no more threads. Members that have begun would wait for the seats of
        # those that never will.
        for seat in seats:
            seat.leave()
        raise
    return running


def _as_they_end(
    running: dict[Future[bool], Member], stop: StopRequest
) -> Iterator[tuple[Future[bool], Member]]:
    """Yield members as they end. After a signal, cancel those that have not begun."""
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=SIGNAL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            if not future.cancelled():
                yield future, running[future]

        # `cancel` fails for members that have begun: these save, end, and are yielded later.
        if stop.number is not None:
            waiting = {future for future in waiting if not future.cancel()}


def _interrupted(sweep: Sweep, number: int) -> Interrupted:
    """Return the error of a sweep that was stopped by this signal."""
    what = f"stopped by {signal.Signals(number).name}; every member has saved"
    remedy = f"rnncls sweep --resume {sweep.folder}"
    problem = Problem(what, str(sweep.folder), remedy=remedy, id="R4")
    return Interrupted(128 + number, problem)


def _run_member(sweep: Sweep, member: Member, shared: Shared) -> bool:
    """Train and evaluate a member as far as that is not done; return whether it solves the task.

    Solved means every sequence of the training lengths is right.
    """
    run_dir = sweep.run_dir(member)
    shared.stop.check(0, str(run_dir))
    _train_member(member, run_dir, shared)

    evaluation = read_evaluation(run_dir)
    if evaluation is None or evaluation.step != read_status(run_dir).get("step"):
        report = evaluate_member(member, run_dir, None, sweep, shared.stop)
        evaluation = write_evaluation(run_dir, report)
    return trained_accuracy(evaluation, member.config) == 1


def _train_member(member: Member, run_dir: Path, shared: Shared) -> None:
    """Train a member from where it stands to its last step.

    Raises: InUse if another process trains it. NonFiniteError if it diverges, or has before.
    """
    status = read_status(run_dir)
    if status.get("exit_code") == NonFiniteError.exit_code:
        # It would diverge again, at the same step.
        what = "not finite, in an earlier call"
        error_id = str(status.get("error_id")) or "R12"
        raise NonFiniteError(Problem(what, str(run_dir), id=error_id))

    try:
        if status.get("state") == "finished":
            shared.report_steps(member.config.train.max_steps)
        elif step_files(run_dir / CHECKPOINTS):
            resume(run_dir, shared=shared)
        else:
            fit(member.config, run_dir, shared=shared)
    except (ConfigError, MachineError) as error:
        # Another process may come first at any time up to the lock, and then the run directory is
        # in use, or no longer empty. Both are errors only if that process has gone.
        if is_locked(run_dir):
            raise InUse(*error.problems) from None
        raise
