"""Train and evaluate the members of a sweep in one process.

A member is the run that `rnncls train` makes of its config: same code, same batches, same files.
Members with compiled steps run in parallel threads, because compiled code does not hold Python's
lock, and are the same to the bit. On CUDA, members of one shape train as one stack (see
`steps.captured.stack`), and are the same up to rounding. All others run one after another, and so
do members that profile.
"""

import itertools
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from rnncls.data.files.search import Search
from rnncls.errors import Interrupted, Problem, RnnclsError, WriteError, on_one_line
from rnncls.rundir.hparams import InSweep
from rnncls.steps.captured.stack import Stack
from rnncls.sweep.groups import Group, plan_groups
from rnncls.sweep.member import InUse, run_member
from rnncls.sweep.moved import with_files_of_sweep
from rnncls.sweep.paths import FOLDERS
from rnncls.sweep.plan import Member, Sweep, format_setting
from rnncls.system.folders import refuse_links
from rnncls.system.signals import StopRequest, stop_requests
from rnncls.training.run import Shared

# How soon a signal cancels the members that wait for a thread. A signal does not wake `wait`, so it
# has to time out; five times a second costs nothing.
SIGNAL_SECONDS = 0.2


def run_sweep(
    sweep: Sweep,
    shard: tuple[int, int] = (1, 1),
    jobs: int | None = None,
    data_dir: Path | None = None,
) -> list[tuple[Member, RnnclsError]]:
    """Train and evaluate the members that are not done yet, and return those that failed, and why.

    `shard`: which part of the members, counted from 1, and of how many parts. `jobs`: how many
    members train at the same time; None for as many as there are cores. A member that fails, for
    example because it diverges, does not stop the others. A member that another process trains is
    left to that process. `data_dir`: where data files are looked for that were moved, besides the
    places beside the sweep.

    Raises: Interrupted after a signal, once every member has saved. CheckpointError if the data
    has changed, or if a folder of the sweep is a link. WriteError if the disk is full; the sweep
    can be resumed.
    """
    # The pictures come last: whoever trains for a day should hear of it before.
    refuse_links(sweep.folder, *FOLDERS)

    # Members of an earlier call trained on these files; the others must be comparable with them.
    search = Search(sweep.folder, data_dir)
    sweep = with_files_of_sweep(sweep, search)
    members = _members_of_shard(sweep, shard)

    progress = _Progress(members)
    # Signal handlers belong to the process, so they are set here once and not by each member.
    with stop_requests() as stop, progress.bar:
        shared = Shared(
            stop,
            progress.update,
            search=search,
            said=set(),
            step_rules=sweep.step_rules,
        )
        _say_profiled(members, jobs)
        for group in plan_groups(members, jobs, sweep.step_rules):
            _run_group(sweep, group, stop, progress, shared)
            if stop.number is not None:
                raise _interrupted(sweep, stop.number)
    # In the order of the sweep, not in that in which they failed.
    place = {member.name: number for number, member in enumerate(members)}
    return sorted(progress.failed, key=lambda failure: place[failure[0].name])


def _members_of_shard(sweep: Sweep, shard: tuple[int, int]) -> list[Member]:
    number, num_shards = shard
    # Seeds vary fastest, so to take every nth member spreads each setting, and its cost, over the
    # shards.
    return sweep.members[number - 1 :: num_shards]


def _say_profiled(members: Sequence[Member], jobs: int | None) -> None:
    """Say that members which profile take turns, if there could have been several at a time."""
    profiled = [member for member in members if member.config.train.profile]
    if len(profiled) > 1 and jobs != 1:
        text = f"{len(profiled):,} members with train.profile=true train one after another"
        # Through tqdm, which moves the bar out of the way.
        tqdm.write(on_one_line(f"rnncls: {text}"), file=sys.stderr)


class _Progress:
    """The bar of a sweep and the counts beside it. `update` is called from the members' threads."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.num_members = len(members)

        # Counted by the thread that waits for the members, so without the lock.
        self.ended = 0
        self.solved = 0
        self.failed: list[tuple[Member, RnnclsError]] = []

        total = sum(member.config.train.max_steps for member in members)
        # The counts come first: on a narrow terminal the end of the line is cut off.
        self.bar = tqdm(
            total=total,
            disable=None,
            dynamic_ncols=True,
            # Not tqdm's own guess, which one large step would raise: a member that was trained by
            # an earlier call adds all its steps at once, and the bar would then stand still.
            miniters=1,
            bar_format="{desc} |{bar}| {n:,}/{total:,} steps, {remaining} left",
        )
        self.lock = threading.Lock()
        self.show_counts()

    def update(self, steps: int) -> None:
        # tqdm adds to its count without a lock: two threads at once would lose steps.
        with self.lock:
            self.bar.update(steps)

    def show_counts(self) -> None:
        counts = f"{self.ended} of {self.num_members} members, {self.solved} solved"
        if self.failed:
            counts += f", {len(self.failed)} failed"
        with self.lock:
            self.bar.set_description_str(counts)


def _run_group(
    sweep: Sweep, group: Group, stop: StopRequest, progress: _Progress, shared: Shared
) -> None:
    """Train and evaluate the members of a group, until each has ended or saved.

    `shared` is what the members of all groups have in common.

    Raises the first error that concerns more than one member, after all others have saved.
    """
    fatal: BaseException | None = None

    # Leaving the pool waits for every thread, so nothing is raised while a member still trains.
    with ThreadPoolExecutor(group.threads) as pool:
        running = _submit(pool, sweep, group, stop, shared)
        for future, member in _as_they_end(running, stop):
            error = future.exception()
            if error is None:
                progress.ended += 1
                progress.solved += future.result()
            elif isinstance(error, InUse | Interrupted):
                # No result, and no failure either: another process trains the member, or it has
                # saved and will be resumed.
                continue
            elif isinstance(error, RnnclsError) and not isinstance(error, WriteError):
                # Without its traceback, whose frames would keep the weights of every failed member.
                progress.ended += 1
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
    pool: ThreadPoolExecutor, sweep: Sweep, group: Group, stop: StopRequest, shared: Shared
) -> dict[Future[bool], Member]:
    """Hand the members of a group to the pool's threads."""
    running: dict[Future[bool], Member] = {}
    stack_members = Stack(len(group.members)).members if group.stacked else []

    # Without a stack there are no stack members, and every member is paired with None.
    try:
        for member, stack_member in itertools.zip_longest(group.members, stack_members):
            of_member = replace(
                shared,
                stop=stop.member(),
                engine=stack_member.steps if stack_member else None,
                in_sweep=InSweep(tuple(member.values), _group_of(sweep, member)),
            )

            future = pool.submit(run_member, sweep, member, of_member)
            running[future] = member

            # A stack takes a step when every member that has not left waits for one. A member that
            # is cancelled, or fails before its first step, must leave it, or all others hang.
            if stack_member:
                future.add_done_callback(stack_member.leave)
    except RuntimeError:
        # The system gives no more threads. Members that have begun would wait for those that never
        # will.
        for stack_member in stack_members:
            stack_member.leave()
        raise
    return running


def _group_of(sweep: Sweep, member: Member) -> str:
    """Return what the members of a setting have in common in HParams, and no others have."""
    return f"{format_setting(member.values, short=True)} of {sweep.folder.resolve()}"


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
    remedy = f"rnncls sweep --resume {shlex.quote(str(sweep.folder))}"
    problem = Problem(
        "interrupted, every member has saved", str(sweep.folder), remedy=remedy, id="R4"
    )
    return Interrupted(128 + number, problem)
