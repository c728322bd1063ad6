"""The compiled steps of `program`, on a run's own model and optimizer."""

import hashlib
import math
import os
import stat
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numba.core.config as numba_config
import numpy as np
import torch
from numba import njit

from rnncls.config import Config
from rnncls.data import Block, Task
from rnncls.steps.chunks import Rates, in_chunks
from rnncls.steps.compiled import kernels, memory, program
from rnncls.steps.compiled.memory import (
    ADAM,
    ADAMW,
    SGD,
    Array,
    Buffers,
    Flat,
    Hyper,
    Sizes,
    Steps,
    buffers,
)
from rnncls.steps.flat import FlatStorage
from rnncls.steps.state import TrainState

_OPTIMIZERS = {"adam": ADAM, "adamw": ADAMW, "sgd": SGD}


def compiled(state: TrainState, task: Task) -> Generator[int, None, None]:
    """Train up to the task's last step on the CPU, with torch's number of threads; yields how many steps were taken."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from in_chunks(state, task, Compiled(state, task, pool).take)


class Compiled:
    """The program's arguments for one run."""

    def __init__(self, state: TrainState, task: Task, pool: ThreadPoolExecutor) -> None:
        self.state, self.pool, self.functions = state, pool, load_program()
        self.flat = FlatStorage(state, task.config)
        self.arrays = Flat(*(row.numpy() for row in self.flat.flat))
        self.sizes, self.hyper = sizes_of(task), hyper_of(task.config)
        weights = (
            torch.ones(self.sizes.classes) if task.class_weights is None else task.class_weights
        )
        self.class_weights, self.threads = weights.numpy(), torch.get_num_threads()
        self.memory: list[Buffers] = []  # of each thread
        rest = (self.threads - 1, len(self.arrays.weights))
        self.others = np.zeros(rest, np.float32)  # gradients of all threads but the first
        self.block: Block | None = None
        self.steps: Steps

    def take(self, block: Block, rates: Rates, first: int, last: int) -> int:
        """As `chunks.Take`: stops before a step that is not finite."""
        if block is not self.block:
            self._make_room(block)
            tokens, starts, lengths, labels, edges = (part.numpy() for part in block)
            self.block, self.steps = block, Steps(tokens, starts, lengths, labels, edges, rates)
        steps = self.steps._replace(
            edges=self.steps.edges[first : last + 1], rates=rates[first:last]
        )
        self.flat.attach()
        totals = self.state.totals
        sums = np.array(
            [totals.loss, totals.correct, totals.sequences, totals.grad_norm, totals.clipped]
        )
        if self.threads == 1:
            shared = (steps, self.class_weights, self.flat.updates, sums, self.memory[0])
            taken = int(self.functions.train_steps(self.sizes, self.hyper, self.arrays, *shared))
        else:
            taken = self._in_threads(steps, sums)
        totals.loss, totals.grad_norm = float(sums[0]), float(sums[3])
        totals.correct, totals.sequences, totals.clipped = int(sums[1]), int(sums[2]), int(sums[4])
        totals.steps += taken
        self.flat.count(taken)
        self.state.optimizer.param_groups[0]["lr"] = float(rates[max(first, first + taken - 1)])
        return taken

    def _in_threads(self, steps: Steps, sums: Array) -> int:
        """As `program.train_steps`; each thread takes every so-many-th sequence of a batch."""
        outs, updates = [self.arrays.gradients, *self.others], self.flat.updates
        for step, rate in enumerate(steps.rates):
            shares = []
            for share, (out, own) in enumerate(zip(outs, self.memory, strict=True)):
                what = (self.sizes, self.arrays.weights, out, steps, step, share, self.threads)
                shares.append(
                    self.pool.submit(self.functions.share_of_step, *what, self.class_weights, own)
                )
            losses, corrects = zip(*(share.result() for share in shares), strict=True)
            count = int(steps.edges[step + 1] - steps.edges[step])
            done = (updates + step + 1, sum(losses), sum(corrects), count, sums)
            if not self.functions.finish_step(
                self.sizes, self.hyper, self.arrays, self.others, rate, *done
            ):
                return step
        return len(steps.rates)

    def _make_room(self, block: Block) -> None:
        """Buffers that hold every batch of the block; those there are stay if they are large enough."""
        sequences, longest = int(block.edges.diff().max()), int(block.lengths.max())
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), block.lengths.cumsum(0)])
        rows = int(ends[block.edges].diff().max())
        if self.memory:
            batch = self.memory[0].batch
            if (
                rows <= len(batch.tokens)
                and sequences <= len(batch.order)
                and longest <= len(batch.running)
            ):
                return
            rows, sequences = max(rows, len(batch.tokens)), max(sequences, len(batch.order))
            longest = max(longest, len(batch.running))
        most = (rows, sequences, longest)
        self.memory = [self.functions.buffers(self.sizes, *most) for _ in range(self.threads)]


def sizes_of(task: Task) -> Sizes:
    """Shapes and functions of the task's model. `by_table` depends on the config alone, so that bits never change."""
    model, (tokens, classes) = task.config.model, task.sizes
    return Sizes(
        tokens=tokens,
        width=model.embedding_dim,
        hidden=model.hidden_size,
        layers=model.num_layers,
        classes=classes,
        bias=model.bias,
        relu=model.nonlinearity == "relu",
        optimizer=_OPTIMIZERS[task.config.optimizer.name],
        by_table=tokens <= task.config.train.batch_size,
    )


def hyper_of(settings: Config) -> Hyper:
    """Of clipping and optimizer."""
    optimizer, max_norm = settings.optimizer, settings.train.max_grad_norm
    limit = math.inf if max_norm is None else max_norm
    return Hyper(limit, optimizer.weight_decay, *optimizer.betas, optimizer.eps, optimizer.momentum)


class Functions(NamedTuple):
    """The entry points of `program`, as machine code."""

    buffers: Callable[..., Any]
    train_steps: Callable[..., Any]
    share_of_step: Callable[..., Any]
    finish_step: Callable[..., Any]


_loaded: list[Functions] = []
_loading = threading.Lock()


def load_program() -> Functions:
    """The compiled functions: from the disk, or compiled when they are first called, and kept there.

    The folder is named after the sources, because Numba looks at the caller's file alone. Where there is no place to
    keep them, or what was kept cannot be read, they are compiled for this process.
    """
    with _loading:
        if not _loaded:
            folder = _cache_folder()
            try:
                _loaded.append(_warmed_up(folder))
            except Exception as error:  # whatever a damaged or full disk makes of Numba's files
                if folder is None:
                    raise
                print(
                    f"rnncls: warning[R31]: compiled steps are not kept in {folder}: {error}",
                    file=sys.stderr,
                )
                _loaded.append(_warmed_up(None))
        return _loaded[0]


def _cache_folder() -> Path | None:
    sources = hashlib.sha256()
    for module in (kernels, memory, program):
        sources.update(Path(str(module.__file__)).read_bytes())
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "rnncls" / sources.hexdigest()[:16]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError):
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    return (
        folder if own and os.access(folder, os.W_OK) else None
    )  # nobody else may have put machine code there


def _warmed_up(folder: Path | None) -> Functions:
    """Compile or load what is needed with torch's number of threads, which a call of no steps makes happen."""
    if folder is None or not any(folder.rglob("*.nbi")):
        kept = "" if folder is None else f"; kept in {folder}"
        print(f"compiling the training step, which takes some seconds{kept}", file=sys.stderr)
    numba: Any = numba_config
    before, numba.CACHE_DIR = numba.CACHE_DIR, "" if folder is None else str(folder)
    options = {"cache": folder is not None, **kernels.OPTIONS}
    try:
        sources = (buffers, program.train_steps, program.share_of_step, program.finish_step)
        functions = Functions(*(njit(source, **options) for source in sources))
    finally:
        numba.CACHE_DIR = before
    sizes = Sizes(1, 1, 1, 1, 1, True, False, ADAM, True)
    hyper = Hyper(1.0, 0.0, 0.9, 0.999, 1e-8, 0.0)
    floats, integers = (
        np.zeros(16, np.float32),
        np.zeros(1, np.int64),
    )  # a model of ones has 7 parameters
    steps = Steps(np.zeros(1, np.int32), integers, integers, integers, integers, np.zeros(0))
    memory, flat = functions.buffers(sizes, 1, 1, 1), Flat(floats, floats, floats, floats)
    functions.train_steps(sizes, hyper, flat, steps, floats, 0, np.zeros(5), memory)
    if torch.get_num_threads() > 1:  # a batch without sequences, and gradients that are not finite
        steps = steps._replace(edges=np.zeros(2, np.int64))
        loss, correct = functions.share_of_step(
            sizes, floats, floats.copy(), steps, 0, 0, 1, floats, memory
        )
        nan = np.full(16, np.nan, np.float32)
        done = (1, float(loss), int(correct), 1, np.zeros(5))
        functions.finish_step(
            sizes,
            hyper,
            Flat(floats, nan, floats, floats),
            np.zeros((1, 16), np.float32),
            0.0,
            *done,
        )
    return functions
