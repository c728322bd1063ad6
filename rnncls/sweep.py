"""Many runs of one config in one process: seeds, and values of other keys, as members of a sweep.

    <sweep>/sweep.yaml       the config, the seeds, the grid, how members are evaluated
    <sweep>/members/<name>/  each an ordinary run, with evaluation.json when it has finished
    <sweep>/summary.json     statistics; summary.csv: a line per member; plots/

A member is what `rnncls train` makes of its config: same code, same batches, same files. Members whose steps are
compiled run beside each other in threads, because compiled code does without Python's lock, and are the same to the
bit. On CUDA those of one shape are one stack (see `steps.stacked`), the same up to rounding. Others run one by one.
"""

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rnncls import rundir
from rnncls.checkpoint import find_newest, read_checkpoint, restore_model, step_files
from rnncls.config import Config, SumModConfig, parse_config, read_yaml, write_yaml
from rnncls.device import resolve_device
from rnncls.errors import ConfigError, Interrupted, NonFiniteError, Problem
from rnncls.evaluation import Report, evaluate
from rnncls.files import read_regular, writing
from rnncls.files import replace as replace_file
from rnncls.resume import resume
from rnncls.signals import StopRequest, stop_requests
from rnncls.steps import why_not
from rnncls.steps.stacked import Stack, shape_of
from rnncls.train import Company, fit

PLAN, MEMBERS, EVALUATION = "sweep.yaml", "members", "evaluation.json"
MOST_MEMBERS = 100_000
MOST_STACKED = 128  # in one stack
MAX_EVALUATION_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    values: dict[str, str]  # of the grid's keys, as they were written
    config: Config


@dataclass(frozen=True)
class Sweep:
    """What is to be run, and how it is judged."""

    folder: Path
    members: list[Member]
    lengths: list[int] | None  # test lengths; None: those of training
    samples: int  # per length, where not all

    def run_dir(self, member: Member) -> Path:
        return self.folder / MEMBERS / member.name


def plan(
    base: Config,
    seeds: Sequence[int],
    grid: dict[str, list[str]],
    lengths: list[int] | None,
    samples: int,
    folder: Path,
) -> Sweep:
    """A new sweep, written to `folder`, or the one that is there if it is the same. Raises ConfigError."""
    raw = {"config": base.model_dump(mode="json"), "seeds": seeds, "grid": grid, "lengths": lengths, "samples": samples}
    sweep = _sweep_of(raw, folder, str(folder))
    path = folder / PLAN
    if path.exists():
        if json.dumps(read_yaml(path)) != json.dumps(raw):
            remedy = "another --sweep-dir, or sweep --resume"
            raise ConfigError(Problem("another sweep is in this folder", str(path), remedy=remedy, id="C19"))
        return sweep
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(Problem("the folder is not empty", str(folder), remedy="another --sweep-dir", id="C19"))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, write_yaml(raw).encode())
    return sweep


def load_sweep(folder: Path) -> Sweep:
    """The sweep in a folder. Raises ConfigError."""
    path = folder / PLAN
    raw = read_yaml(path)
    if not isinstance(raw, dict) or set(raw) != {"config", "seeds", "grid", "lengths", "samples"}:
        raise ConfigError(Problem("no sweep", str(path), "what rnncls sweep wrote", id="C4"))
    return _sweep_of(raw, folder, str(path))


def _sweep_of(raw: dict[str, Any], folder: Path, source: str) -> Sweep:
    axes = [[(key, text) for text in texts] for key, texts in raw["grid"].items()]
    if not raw["seeds"] or any(not axis for axis in axes):
        raise ConfigError(Problem("a sweep without members", source, "at least one seed and value", id="C17"))
    if (count := len(raw["seeds"]) * len(list(itertools.product(*axes)))) > MOST_MEMBERS:
        raise ConfigError(Problem("a very large sweep", source, f"at most {MOST_MEMBERS:,}", f"{count:,}", id="C10"))
    members = []
    for pairs in itertools.product(*axes):
        values = dict(pairs)
        for seed in raw["seeds"]:
            overrides = [*(f"{key}={text}" for key, text in values.items()), f"seed={seed}"]
            parts = [f"{key.rpartition('.')[2]}={text}" for key, text in values.items()]
            name = "_".join([*parts, f"seed={seed}"])
            if "/" in name or len(name) > 200:
                raise ConfigError(Problem("no name for a folder", source, found=name, id="C17"))
            members.append(Member(name, values, parse_config(raw["config"], source, overrides)))
    if len({member.name for member in members}) < len(members):
        raise ConfigError(Problem("two members would be the same", source, "different seeds and values", id="C17"))
    lengths = None if raw["lengths"] is None else list(raw["lengths"])
    return Sweep(folder, members, lengths, raw["samples"])


def run_sweep(sweep: Sweep, shard: tuple[int, int] = (1, 1), jobs: int | None = None) -> list[str]:
    """Train and evaluate what is not done of this shard (number, of how many); returns who failed, and why.

    `jobs`: how many at once. A member that diverges is a failure of its own and harms no other. Raises Interrupted
    after a signal, when all members have saved, and the first other error.
    """
    mine = [member for number, member in enumerate(sweep.members) if number % shard[1] == shard[0] - 1]
    total = sum(member.config.train.max_steps for member in mine)
    failed: list[str] = []
    with stop_requests() as stop, tqdm(total=total, unit="step", disable=None, dynamic_ncols=True) as bar:
        solved, guard = 0, threading.Lock()

        def update(steps: int) -> None:
            with guard:
                bar.update(steps)

        for group in groups(mine, jobs):
            first_error: BaseException | None = None
            with ThreadPoolExecutor(group.threads) as pool:
                running = _submit(pool, sweep, group, Company(stop, update))
                for future, member in _as_they_end(running, stop):
                    error = future.exception()
                    if isinstance(error, NonFiniteError):
                        failed.append(f"{member.name}: {error}")
                    elif isinstance(error, Interrupted):
                        continue
                    elif error is not None:
                        first_error = first_error or error
                        stop.number = stop.number or signal.SIGTERM  # the others save and end, too
                    else:
                        solved += future.result()
                    bar.set_postfix_str(f"{solved} solved, {len(failed)} failed of {len(mine)}")
            if first_error is not None:
                raise first_error
            if stop.number is not None:
                what = f"stopped by {signal.Signals(stop.number).name}; every member has saved"
                remedy = f"rnncls sweep --resume {sweep.folder}"
                raise Interrupted(128 + stop.number, Problem(what, str(sweep.folder), remedy=remedy, id="R4"))
    return failed


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
    for shape_members in shapes.values():
        size = jobs or MOST_STACKED
        for first in range(0, len(shape_members), size):
            part = shape_members[first : first + size]
            found.append(Group(part, len(part), stacked=len(part) > 1))
    if compiled:
        found.append(Group(compiled, min(jobs or len(os.sched_getaffinity(0)), len(compiled))))
    return found + ([Group(alone, 1)] if alone else [])


def _submit(pool: ThreadPoolExecutor, sweep: Sweep, group: Group, company: Company) -> dict[Future[bool], Member]:
    if not group.stacked:
        return {pool.submit(_finish, sweep, member, company): member for member in group.members}
    running = {}
    for member, seat in zip(group.members, Stack(len(group.members)).seats, strict=True):
        future = pool.submit(_finish, sweep, member, replace(company, engine=seat.steps))
        future.add_done_callback(seat.leave)  # also if it is cancelled or fails before its first step
        running[future] = member
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
    status = rundir.read_status(run_dir)
    if status.get("exit_code") == NonFiniteError.exit_code:
        error = Problem("not finite, in an earlier call", str(run_dir), id=str(status.get("error_id")) or "R12")
        raise NonFiniteError(error)
    if status.get("state") == "finished":
        company.update(member.config.train.max_steps)
    elif step_files(run_dir / rundir.CHECKPOINTS):
        company.update(read_checkpoint(find_newest(run_dir)).state.step)
        resume(run_dir, company=company)
    else:
        fit(member.config, run_dir, company=company)
    path = run_dir / EVALUATION
    if not path.exists():
        report = evaluate_member(run_dir, sweep.lengths, sweep.samples)
        with writing(path):
            replace_file(path, json.dumps(report.to_json()).encode())
    return bool(read_evaluation(run_dir)["accuracy"] == 1)


def evaluate_member(run_dir: Path, lengths: list[int] | None, samples: int) -> Report:
    """Of the last checkpoint: nothing is selected by test accuracy."""
    torch.set_num_threads(1)
    checkpoint = read_checkpoint(find_newest(run_dir))
    model = restore_model(checkpoint).to(resolve_device(checkpoint.config.device))
    generated = isinstance(checkpoint.config.data, SumModConfig)
    return evaluate(model, checkpoint.config, lengths if generated else None, samples)


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """What `evaluation.json` says; empty where there is none. Raises ConfigError when it is damaged."""
    path = run_dir / EVALUATION
    if not path.exists():
        return {}
    try:
        found = json.loads(read_regular(path, MAX_EVALUATION_BYTES))
        if not {"accuracy", "by_length"} <= set(found):
            raise ValueError
    except (OSError, ValueError):
        remedy = "delete it, and sweep --resume"
        raise ConfigError(
            Problem("no evaluation", str(path), "what rnncls sweep wrote", remedy=remedy, id="C4")
        ) from None
    return dict(found)
