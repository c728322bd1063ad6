"""Runs the compiled steps of a cell's program on a run's own model and optimizer."""

import math
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from rnncls.compiled import batches, gates, kernels
from rnncls.compiled.batches import Array, BatchSize
from rnncls.compiled.loading import load
from rnncls.config import Config, number
from rnncls.data import Block, Task
from rnncls.model.pooling import parts_of
from rnncls.model.rules import LATEST, StepRules
from rnncls.seeds import mix
from rnncls.steps.chunks import Rates, in_chunks
from rnncls.steps.compiled import (
    dropout,
    gru,
    head,
    inputs,
    lstm,
    memory,
    optimizer,
    parameters,
    program,
    rnn,
)
from rnncls.steps.compiled.memory import (
    ADAM,
    ADAMW,
    NUM_SUMS,
    SGD,
    Buffers,
    FlatArrays,
    Hyperparameters,
    Sizes,
    StepInputs,
    make_buffers,
)
from rnncls.steps.flat import FlatStorage
from rnncls.steps.optim import CLIP_EPSILON
from rnncls.steps.state import Sums, TrainState

# From so many rows of a batch for each token of the vocabulary on, a table is faster; in batches of
# short sequences from one sequence for each.
ROWS_OF_TOKEN = 8

_OPTIMIZERS = {"adam": ADAM, "adamw": ADAMW, "sgd": SGD}

# By their name in model.cell. Each says what it needs in GATES, KEPT and BIAS_APART.
_CELLS: dict[str, ModuleType] = {"rnn": rnn, "gru": gru, "lstm": lstm}


def compiled_steps(state: TrainState, task: Task) -> Generator[int, None, None]:
    """Train up to the task's last step on the CPU, with torch's number of threads.

    Yields how many steps were taken, as every engine does.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        compiled_run = CompiledRun(state, task, pool)
        yield from in_chunks(state, task, compiled_run.take)


class CompiledRun:
    """The arguments of the compiled program for one run, and the calls to it."""

    def __init__(self, state: TrainState, task: Task, pool: ThreadPoolExecutor) -> None:
        self.state = state
        self.seed = task.config.seed
        self.pool = pool
        self.functions = load_program(task.config.model.cell)
        self.threads = torch.get_num_threads()

        # The arrays are the same memory as the tensors, so that nothing is copied back and forth.
        self.flat = FlatStorage(state, task.config)
        self.arrays = FlatArrays(*(row.numpy() for row in self.flat.flat))
        self.sizes = sizes_of(task, state.step_rules)
        self.hyper = hyperparameters_of(task.config)

        if task.class_weights is None:
            self.class_weights = np.ones(self.sizes.classes, np.float32)
        else:
            self.class_weights = task.class_weights.numpy()

        # The first thread writes its gradients to the model's own, the others to these, (., P).
        num_parameters = len(self.arrays.weights)
        self.other_gradients = np.zeros((self.threads - 1, num_parameters), np.float32)

        # One for each thread, all with room for batches of this capacity.
        self.buffers: list[Buffers] = []
        self.capacity = BatchSize(sequences=0, time_steps=0, rows=0)

        # The block whose steps are being taken, and its arrays.
        self.block: Block | None = None
        self.inputs: StepInputs

    def take(self, block: Block, rates: Rates, first: int, last: int) -> int:
        """Take the steps `first` to `last` of a block, as `chunks.TakeChunk` describes.

        Stops before a step whose loss or gradient is not finite.
        """
        if block is not self.block:
            self._open(block, rates)

        # The eager step may have replaced the gradients, or made the optimizer's first state.
        self.flat.attach()

        # The edges and rates of this chunk alone, whose steps the program counts from 0. The edges
        # point into the arrays of the whole block.
        inputs = self.inputs._replace(
            edges=self.inputs.edges[first : last + 1],
            rates=rates[first:last],
            keys=self._dropout_keys(last - first),
        )
        sums = np.array(self.state.totals.sums())
        if self.threads == 1:
            taken = self._take_in_one_thread(inputs, sums)
        else:
            taken = self._take_in_threads(inputs, sums)

        self.state.totals.replace_sums(Sums(*sums), taken)
        self.flat.count(taken)

        # As after an eager step, the optimizer shows the learning rate of the last step.
        last_rate = rates[max(first, first + taken - 1)]
        self.state.optimizer.param_groups[0]["lr"] = float(last_rate)
        return taken

    def _open(self, block: Block, rates: Rates) -> None:
        """Make the block the one whose steps are taken next."""
        self._make_room(block)
        tokens, starts, lengths, labels, edges = (part.numpy() for part in block)
        keys = np.empty((0, 0), np.uint64)  # each chunk gets its own
        self.inputs = StepInputs(tokens, starts, lengths, labels, edges, rates, keys)
        self.block = block

    def _dropout_keys(self, num_steps: int) -> Array:
        """Return the keys of the dropout of the next steps, as StepInputs wants them."""
        if self.sizes.dropout == 0:
            return np.empty((num_steps, 0), np.uint64)

        keys = np.empty((num_steps, self.sizes.layers - 1), np.uint64)
        for index in range(num_steps):
            step = self.state.step + index
            for layer in range(1, self.sizes.layers):
                keys[index, layer - 1] = mix(self.seed, "dropout", step, layer)
        return keys

    def _make_room(self, block: Block) -> None:
        """Make sure that every batch of the block fits into the buffers, which never shrink."""
        needed = largest_batch(block)
        capacity = BatchSize(
            sequences=max(needed.sequences, self.capacity.sequences),
            time_steps=max(needed.time_steps, self.capacity.time_steps),
            rows=max(needed.rows, self.capacity.rows),
        )
        if capacity == self.capacity:
            return

        self.buffers = [make_buffers(self.sizes, capacity) for _ in range(self.threads)]
        self.capacity = capacity

    def _take_in_one_thread(self, inputs: StepInputs, sums: Array) -> int:
        """Take all steps in one call; return how many were taken."""
        taken = self.functions.train_steps(
            sizes=self.sizes,
            hyper=self.hyper,
            flat=self.arrays,
            step_inputs=inputs,
            class_weights=self.class_weights,
            updates=self.flat.updates,
            sums=sums,
            buffers=self.buffers[0],
        )
        return int(taken)

    def _take_in_threads(self, inputs: StepInputs, sums: Array) -> int:
        """Take the steps with all threads; return how many were taken."""
        updates = self.flat.updates

        # Two phases alternate. The threads only read the weights while they compute gradients; when
        # all have ended, this one adds the gradients up and changes the weights.
        for step, rate in enumerate(inputs.rates):
            loss, correct = self._gradients_in_threads(inputs, step)
            finished = self.functions.finish_step(
                sizes=self.sizes,
                hyper=self.hyper,
                flat=self.arrays,
                others=self.other_gradients,
                rate=rate,
                updates=updates + step + 1,
                loss=loss,
                correct=correct,
                sequences=int(inputs.edges[step + 1] - inputs.edges[step]),
                sums=sums,
            )
            if not finished:
                return step
        return len(inputs.rates)

    def _gradients_in_threads(self, inputs: StepInputs, step: int) -> tuple[float, int]:
        """Compute the gradients of one step; return its loss and number of correct predictions.

        With N threads, each takes every N-th sequence of the batch.
        """
        # Every thread writes to an array of its own, so that none has to wait for another.
        gradients = [self.arrays.gradients, *self.other_gradients]
        shares = []
        for share in range(self.threads):
            future = self.pool.submit(
                self.functions.share_of_step,
                sizes=self.sizes,
                weights=self.arrays.weights,
                out=gradients[share],
                step_inputs=inputs,
                step=step,
                share=share,
                shares=self.threads,
                class_weights=self.class_weights,
                buffers=self.buffers[share],
            )
            shares.append(future)

        # Added in the order of the threads, not of their ends: the same bits every time.
        loss = 0.0
        correct = 0
        for future in shares:
            share_loss, share_correct = future.result()
            loss += share_loss
            correct += share_correct
        return loss, correct


# --- what the program is told about a run


def sizes_of(task: Task, step_rules: StepRules = LATEST) -> Sizes:
    """Return the sizes and functions of the task's model. `step_rules`: those of the run."""
    model = task.config.model
    cell = _CELLS[model.cell]
    parts = parts_of(model.pooling)
    num_tokens, num_classes = task.sizes
    return Sizes(
        tokens=num_tokens,
        width=model.embedding_dim,
        hidden=model.hidden_size,
        layers=model.num_layers,
        directions=2 if model.bidirectional else 1,
        classes=num_classes,
        gates=cell.GATES,
        kept=cell.KEPT,
        bias_apart=cell.BIAS_APART,
        bias=model.bias,
        relu=model.nonlinearity == "relu",
        dropout=float(model.dropout),
        optimizer=_OPTIMIZERS[task.config.optimizer.name],
        last="last" in parts,
        mean="mean" in parts,
        largest="max" in parts,
        parts=len(parts) * (2 if model.bidirectional else 1),
        by_table=is_by_table(task, step_rules),
    )


def is_by_table(task: Task, step_rules: StepRules = LATEST) -> bool:
    """Return whether the first layer's W_ih x + b is computed once per token of the vocabulary.

    It depends on config and training data, not on the batch: the two ways differ in rounding.
    docs/performance.md has the measurements behind the rule.
    """
    num_tokens, _ = task.sizes
    batch_size = task.config.train.batch_size
    if step_rules < 3:
        return num_tokens <= batch_size
    return num_tokens <= batch_size * max(1, task.mean_length / ROWS_OF_TOKEN)


def hyperparameters_of(config: Config) -> Hyperparameters:
    """Return the numbers of clipping and of the optimizer."""
    optimizer = config.optimizer
    max_norm = config.train.max_grad_norm
    beta1, beta2 = optimizer.betas
    return Hyperparameters(
        max_norm=math.inf if max_norm is None else max_norm,
        clip_epsilon=CLIP_EPSILON,
        weight_decay=number(optimizer.weight_decay),
        beta1=beta1,
        beta2=beta2,
        eps=optimizer.eps,
        momentum=optimizer.momentum,
    )


def largest_batch(block: Block) -> BatchSize:
    """Return the largest number of sequences, time steps and tokens of any batch of the block."""
    # Rows are tokens: packed batches have no padding. So the largest batch need not be the one with
    # the longest sequence.
    sequences = block.edges.diff()  # (K,)
    token_ends = torch.cat([torch.zeros(1, dtype=torch.int64), block.lengths.cumsum(0)])
    tokens = token_ends[block.edges].diff()  # (K,)
    return BatchSize(
        sequences=int(sequences.max()),
        time_steps=int(block.lengths.max()),
        rows=int(tokens.max()),
    )


# --- the machine code and where it is kept


class Functions(NamedTuple):
    """The entry points of the program of a cell, as machine code."""

    train_steps: Callable[..., Any]
    share_of_step: Callable[..., Any]
    finish_step: Callable[..., Any]


# The members of a sweep are threads of one process: the first of them compiles, the others wait.
_loaded: dict[str, Functions] = {}
_loading = threading.Lock()


def load_program(cell: str = "rnn") -> Functions:
    """Return the compiled functions of a cell, from the folder where they are kept if they are.

    Otherwise they are compiled, which takes a few seconds, and kept. If there is no folder, they
    are compiled for this process alone.
    """
    with _loading:
        if cell not in _loaded:
            # All sources, because a function is compiled together with those that it calls. So a
            # change of one cell leaves the code of the others as it is.
            shared = (kernels, gates, batches, memory, parameters, inputs, dropout, head)
            modules = (*shared, optimizer, program, _CELLS[cell])
            _loaded[cell] = load(
                modules,
                make=lambda compiled: _functions(cell, compiled),
                warm_up=lambda functions: _warm_up(cell, functions),
            )
        return _loaded[cell]


def _functions(cell: str, compiled: Callable[..., Any]) -> Functions:
    """Return the functions, which Numba compiles, or reads, when first called."""
    train_steps, share_of_step = program.entry_points(_CELLS[cell])
    return Functions(
        train_steps=compiled(train_steps),
        share_of_step=compiled(share_of_step),
        finish_step=compiled(program.finish_step),
    )


def _warm_up(cell: str, functions: Functions) -> None:
    """Call the functions that a run with torch's threads needs, so that they are compiled now.

    The types of the arguments are those of a run, since Numba compiles for types.
    """
    # The values do not matter, since no step is taken. They are small to keep the buffers small.
    num_gates = _CELLS[cell].GATES
    sizes = Sizes(
        tokens=1,
        width=1,
        hidden=1,
        layers=1,
        directions=1,
        classes=1,
        gates=num_gates,
        kept=_CELLS[cell].KEPT,
        bias_apart=_CELLS[cell].BIAS_APART,
        bias=True,
        relu=False,
        dropout=0.0,
        optimizer=ADAM,
        last=True,
        mean=False,
        largest=False,
        parts=1,
        by_table=True,
    )
    hyper = Hyperparameters(
        max_norm=1.0,
        clip_epsilon=CLIP_EPSILON,
        weight_decay=0.0,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        momentum=0.0,
    )
    buffers = make_buffers(sizes, BatchSize(sequences=1, time_steps=1, rows=1))

    # This model has 1 parameter in the embedding, 4 for each gate of its layer and 2 in the head.
    floats = np.zeros(3 + 4 * num_gates, np.float32)
    flat = FlatArrays(weights=floats, gradients=floats, first=floats, second=floats)

    # No steps: one edge, no learning rates.
    integers = np.zeros(1, np.int64)
    step_inputs = StepInputs(
        tokens=np.zeros(1, np.int32),
        starts=integers,
        lengths=integers,
        labels=integers,
        edges=integers,
        rates=np.zeros(0),
        keys=np.zeros((0, 0), np.uint64),
    )
    sums = np.zeros(NUM_SUMS)
    if torch.get_num_threads() == 1:
        functions.train_steps(
            sizes=sizes,
            hyper=hyper,
            flat=flat,
            step_inputs=step_inputs,
            class_weights=floats,
            updates=0,
            sums=sums,
            buffers=buffers,
        )
    else:
        # A step without sequences, and then a gradient that is not finite, so that nothing is done.
        step_inputs = step_inputs._replace(
            edges=np.zeros(2, np.int64), keys=np.zeros((1, 0), np.uint64)
        )
        functions.share_of_step(
            sizes=sizes,
            weights=floats,
            out=floats.copy(),
            step_inputs=step_inputs,
            step=0,
            share=0,
            shares=1,
            class_weights=floats,
            buffers=buffers,
        )
        others = np.full((1, len(floats)), np.nan, np.float32)
        functions.finish_step(
            sizes=sizes,
            hyper=hyper,
            flat=flat,
            others=others,
            rate=0.0,
            updates=1,
            loss=0.0,
            correct=0,
            sequences=1,
            sums=sums,
        )
