"""Many runs of one config in one process: seeds, and values of other keys, as members of a sweep.

    <sweep>/sweep.yaml       the config, the seeds, the grid, how members are evaluated (see `plan`)
    <sweep>/members/<name>/  each an ordinary run, with evaluation.json when it has finished
    <sweep>/summary.json     statistics; summary.csv: a line per member; plots/

A member is what `rnncls train` makes of its config: same code, same batches, same files. Members whose steps are
compiled run beside each other in threads, because compiled code does without Python's lock, and are the same to the
bit. On CUDA those of one shape are one stack (see `steps.captured.stack`), the same up to rounding. Others run one by one.
"""

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

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
    EVALUATION,
    Evaluation,
    evaluate_member,
    read_evaluation,
    trained_accuracy,
)
from rnncls.system.device import resolve_device
from rnncls.system.files import write_atomically, writing
from rnncls.system.signals import StopRequest, stop_requests
from rnncls.training.fit import Shared, fit
from rnncls.training.resume import resume

MOST_STACKED = 128  # in one stack


@dataclass(frozen=True)
class Group:
    """Members that run at the same time, as many as there are threads."""

    members: list[Member]
    threads: int
    stacked: bool = False


def groups(members: Sequence[Member], jobs: int | None) -> list[Group]:
    """Compiled members beside each other; on CUDA those of one shape as a stack; the others one by one."""
    compiled: list[Member] = []
    alone: list[Member] = []
    shapes: dict[str, list[Member]] = {}
    for member in members:
        config, device = member.config, resolve_device(member.config.device)
        if config.train.engine in ("auto", "compiled") and not why_not("compiled", config, device):
            compiled.append(member)
        elif config.train.engine in ("auto", "captured") and not why_not(
            "captured", config, device
        ):
            shape = shape_of(config)
            (alone if shape is None else shapes.setdefault(shape.model_dump_json(), [])).append(
                member
            )
        else:
            alone.append(member)
    found = []
    for of_one_shape in shapes.values():
        size = jobs or MOST_STACKED
        for first in range(0, len(of_one_shape), size):
            part = of_one_shape[first : first + size]
            found.append(Group(part, len(part), stacked=len(part) > 1))
    if compiled:
        found.append(Group(compiled, min(jobs or len(os.sched_getaffinity(0)), len(compiled))))
    return found + ([Group(alone, 1)] if alone else [])


class InUse(MachineError):
    """Another process has this member."""


def run_sweep(
    sweep: Sweep, shard: tuple[int, int] = (1, 1), jobs: int | None = None
) -> list[tuple[Member, RnnclsError]]:
    """Train and evaluate what is not done of this shard (number, of how many); returns who failed, and why.

    `jobs`: how many at once. A member that fails, because it diverges for example, harms no other; one that another
    process has is left to it. Raises Interrupted after a signal, when all members have saved, CheckpointError for data
    that has changed, and WriteError, after which nothing more can be done.
    """
    require_unchanged(sweep)
    mine = [
        member for number, member in enumerate(sweep.members) if number % shard[1] == shard[0] - 1
    ]
    total = sum(member.config.train.max_steps for member in mine)
    failed: list[tuple[Member, RnnclsError]] = []
    bar = tqdm(total=total, unit="step", disable=None, dynamic_ncols=True)
    with stop_requests() as stop, reporting_disk_errors_later(), bar:
        solved, guard = 0, threading.Lock()

        def update(steps: int) -> None:
            with guard:
                bar.update(steps)

        for group in groups(mine, jobs):
            fatal: BaseException | None = None
            with ThreadPoolExecutor(group.threads) as pool:
                running = _submit(pool, sweep, group, stop, update)
                for future, member in _as_they_end(running, stop):
                    error = future.exception()
                    if isinstance(error, InUse | Interrupted):
                        continue
                    if isinstance(error, RnnclsError) and not isinstance(error, WriteError):
                        failed.append(
                            (member, error.with_traceback(None))
                        )  # or its frames keep the weights of all
                    elif error is not None:
                        fatal = fatal or error
                        stop.handle(signal.SIGTERM, None)  # the others save and end, too
                    else:
                        solved += future.result()
                    bar.set_postfix_str(f"{solved} solved, {len(failed)} failed of {len(mine)}")
            if fatal is not None:
                raise fatal
            if stop.number is not None:
                what = f"stopped by {signal.Signals(stop.number).name}; every member has saved"
                remedy = f"rnncls sweep --resume {sweep.folder}"
                raise Interrupted(
                    128 + stop.number, Problem(what, str(sweep.folder), remedy=remedy, id="R4")
                )
    return failed


def _submit(
    pool: ThreadPoolExecutor,
    sweep: Sweep,
    group: Group,
    stop: StopRequest,
    update: Callable[[int], object],
) -> dict[Future[bool], Member]:
    running: dict[Future[bool], Member] = {}
    seats = Stack(len(group.members)).members if group.stacked else []
    try:
        for member, seat in itertools.zip_longest(group.members, seats):
            compared = ("seed", *member.values)
            shared = Shared(stop.member(), update, seat.steps if seat else None, compared)
            running[future := pool.submit(_finish, sweep, member, shared)] = member
            if seat:
                future.add_done_callback(
                    seat.leave
                )  # also if it is cancelled or fails before its first step
    except RuntimeError:  # no more threads
        for seat in seats:
            seat.leave()
        raise
    return running


def _as_they_end(
    running: dict[Future[bool], Member], stop: StopRequest
) -> Iterable[tuple[Future[bool], Member]]:
    """The members as they end; a signal is noticed meanwhile, and then those that have not begun never do."""
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in done:
            if not future.cancelled():
                yield future, running[future]
        if stop.number is not None:
            waiting = {future for future in waiting if not future.cancel()}


def _finish(sweep: Sweep, member: Member, shared: Shared) -> bool:
    """Train and evaluate a member as far as that is not done; whether it is right on all training lengths."""
    run_dir = sweep.run_dir(member)
    shared.stop.check(0, str(run_dir))
    status = read_status(run_dir)
    if status.get("exit_code") == NonFiniteError.exit_code:
        error = Problem(
            "not finite, in an earlier call", str(run_dir), id=str(status.get("error_id")) or "R12"
        )
        raise NonFiniteError(error)
    try:
        if status.get("state") == "finished":
            shared.report_steps(member.config.train.max_steps)
        elif step_files(run_dir / CHECKPOINTS):
            resume(run_dir, shared=shared)
        else:
            fit(member.config, run_dir, shared=shared)
    except (ConfigError, MachineError) as error:
        if is_locked(run_dir):
            raise InUse(*error.problems) from None
        raise
    found = read_evaluation(run_dir)
    if found is None or found.step != read_status(run_dir).get("step"):
        raw = evaluate_member(member, run_dir, None, sweep, shared.stop)
        with writing(run_dir / EVALUATION):
            write_atomically(run_dir / EVALUATION, json.dumps(raw, allow_nan=False).encode())
        found = Evaluation.model_validate(raw)
    return trained_accuracy(found, member.config) == 1
