"""Many runs of one config in one process: seeds, and values of other keys, as members of a sweep.

    <sweep>/sweep.yaml       the config, the seeds, the grid, how members are evaluated (see `plan`)
    <sweep>/members/<name>/  each an ordinary run, with evaluation.json when it has finished
    <sweep>/summary.json     statistics; summary.csv: a line per member; plots/

A member is what `rnncls train` makes of its config: same code, same batches, same files. Members whose steps are
compiled run beside each other in threads, because compiled code does without Python's lock, and are the same to the
bit. On CUDA those of one shape are one stack (see `steps.stacked`), the same up to rounding. Others run one by one.
"""

import itertools
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from tqdm import tqdm

from rnncls import rundir
from rnncls.checkpoint import Checkpoint, find_newest, read_checkpoint, restore_model, step_files
from rnncls.config import Config, FilesConfig, SumModConfig, flatten
from rnncls.data import files, spread_lengths
from rnncls.device import resolve_device
from rnncls.errors import (
    ConfigError,
    Interrupted,
    MachineError,
    NonFiniteError,
    Problem,
    RnnclsError,
    WriteError,
)
from rnncls.evaluation import evaluate
from rnncls.files import read_regular, replace, writing
from rnncls.plan import Member, Sweep, require_unchanged
from rnncls.resume import resume
from rnncls.runlog import reporting_disk_errors_later
from rnncls.signals import StopRequest, stop_requests
from rnncls.steps import why_not
from rnncls.steps.stacked import Stack, shape_of
from rnncls.train import Company, fit

EVALUATION = "evaluation.json"
MOST_STACKED = 128  # in one stack
MAX_EVALUATION_BYTES = 64 * 2**20


class LengthFound(BaseModel):
    """What the statistics need of a `LengthReport`."""

    length: Annotated[int, Field(ge=1)]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    trained: bool | None


class Evaluation(BaseModel):
    """evaluation.json, the report of a member; what the statistics need of it."""

    step: int
    accuracy: Annotated[float, Field(ge=0, le=1)]
    chance: Annotated[float, Field(gt=0, le=1)]
    by_length: list[LengthFound]


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
        elif config.train.engine in ("auto", "captured") and not why_not("captured", config, device):
            shape = shape_of(config)
            (alone if shape is None else shapes.setdefault(shape.model_dump_json(), [])).append(member)
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
    mine = [member for number, member in enumerate(sweep.members) if number % shard[1] == shard[0] - 1]
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
                        failed.append((member, error.with_traceback(None)))  # or its frames keep the weights of all
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
                raise Interrupted(128 + stop.number, Problem(what, str(sweep.folder), remedy=remedy, id="R4"))
    return failed


def _submit(
    pool: ThreadPoolExecutor, sweep: Sweep, group: Group, stop: StopRequest, update: Callable[[int], object]
) -> dict[Future[bool], Member]:
    running: dict[Future[bool], Member] = {}
    seats = Stack(len(group.members)).seats if group.stacked else []
    try:
        for member, seat in itertools.zip_longest(group.members, seats):
            compared = ("seed", *member.values)
            company = Company(stop.member(), update, seat.steps if seat else None, compared)
            running[future := pool.submit(_finish, sweep, member, company)] = member
            if seat:
                future.add_done_callback(seat.leave)  # also if it is cancelled or fails before its first step
    except RuntimeError:  # no more threads
        for seat in seats:
            seat.leave()
        raise
    return running


def _as_they_end(running: dict[Future[bool], Member], stop: StopRequest) -> Iterable[tuple[Future[bool], Member]]:
    """The members as they end; a signal is noticed meanwhile, and then those that have not begun never do."""
    waiting = set(running)
    while waiting:
        done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in done:
            if not future.cancelled():
                yield future, running[future]
        if stop.number is not None:
            waiting = {future for future in waiting if not future.cancel()}


def _finish(sweep: Sweep, member: Member, company: Company) -> bool:
    """Train and evaluate a member as far as that is not done; whether it is right on all training lengths."""
    run_dir = sweep.run_dir(member)
    company.stop.check(0, str(run_dir))
    status = rundir.read_status(run_dir)
    if status.get("exit_code") == NonFiniteError.exit_code:
        error = Problem("not finite, in an earlier call", str(run_dir), id=str(status.get("error_id")) or "R12")
        raise NonFiniteError(error)
    try:
        if status.get("state") == "finished":
            company.update(member.config.train.max_steps)
        elif step_files(run_dir / rundir.CHECKPOINTS):
            resume(run_dir, company=company)
        else:
            fit(member.config, run_dir, company=company)
    except (ConfigError, MachineError) as error:
        if rundir.is_locked(run_dir):
            raise InUse(*error.problems) from None
        raise
    found = read_evaluation(run_dir)
    if found is None or found.step != rundir.read_status(run_dir).get("step"):
        raw = evaluate_member(member, run_dir, None, sweep, company.stop)
        with writing(run_dir / EVALUATION):
            replace(run_dir / EVALUATION, json.dumps(raw, allow_nan=False).encode())
        found = Evaluation.model_validate(raw)
    return trained_accuracy(found, member.config) == 1


def evaluate_member(
    member: Member, run_dir: Path, lengths: list[int] | None, sweep: Sweep, stop: StopRequest | None = None
) -> dict[str, Any]:
    """The report on its last checkpoint, because nothing is selected by test accuracy, and the step of that.

    `lengths`: None for those of the sweep. Raises ConfigError where the run is of another config than the member.
    """
    checkpoint = read_checkpoint(find_newest(run_dir))
    _require_planned(member, checkpoint)
    model = restore_model(checkpoint).to(resolve_device(checkpoint.config.device))
    config, dataset = checkpoint.config, None
    if isinstance(config.data, FilesConfig):
        if checkpoint.vocabulary is not None:
            dataset = files.load_held_out(config.data, checkpoint.vocabulary, checkpoint.state.fingerprints)
        lengths = None
    elif lengths is None:
        lengths = tested_lengths(sweep, config)
    step = checkpoint.state.step
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # members are evaluated beside each other
    try:
        check = None if stop is None else lambda: stop.check(step, str(run_dir))
        report = evaluate(model, config, lengths, sweep.samples, dataset=dataset, check=check)
    finally:
        torch.set_num_threads(threads)
    return {"step": step, **report.to_json()}


def tested_lengths(sweep: Sweep, config: Config) -> list[int]:
    """Those of training, or of very many some, and those that were asked for. Files are tested as a whole: none."""
    return sorted({*spread_lengths(config.data), *sweep.lengths}) if isinstance(config.data, SumModConfig) else []


def _require_planned(member: Member, checkpoint: Checkpoint) -> None:
    found, wanted = flatten(checkpoint.config), flatten(member.config)
    changes = [f"{key}: {wanted.get(key)} -> {found[key]}" for key in found if found[key] != wanted.get(key)]
    if changes:
        what, remedy = "the run is not the one that the sweep planned", "move it away, and sweep --resume"
        raise ConfigError(Problem(what, str(checkpoint.path), found=", ".join(changes), remedy=remedy, id="C19"))


def trained_accuracy(found: Evaluation, config: Config) -> float:
    """What success is counted by: the mean over the training lengths, or over the sequences of a file."""
    if not isinstance(config.data, SumModConfig):
        return found.accuracy
    accuracies = [row.accuracy for row in found.by_length if row.trained]
    return math.fsum(accuracies) / max(1, len(accuracies))


def read_evaluation(run_dir: Path) -> Evaluation | None:
    """What `evaluation.json` says; None where there is none. Raises ConfigError when it is damaged."""
    path = run_dir / EVALUATION
    try:
        return Evaluation.model_validate_json(read_regular(path, MAX_EVALUATION_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        remedy = "delete it, and sweep --resume"
        raise ConfigError(
            Problem("no evaluation", str(path), "what rnncls sweep wrote", remedy=remedy, id="C4")
        ) from None
