"""Runs the compiled steps of a cell's program on a run's own model and optimizer."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from rnncls.compiled.batches import Array, BatchSize
from rnncls.data import Block, Task
from rnncls.model.dropout import dropout_keys, input_keys
from rnncls.model.noise import noise_keys
from rnncls.steps.chunks import Rates, in_chunks
from rnncls.steps.compiled.code import load_program
from rnncls.steps.compiled.description import (
    extras_of,
    hyperparameters_of,
    largest_batch,
    sizes_of,
)
from rnncls.steps.compiled.memory import Buffers, FlatArrays, StepInputs, make_buffers
from rnncls.steps.flat import GRADIENTS, FlatStorage
from rnncls.steps.state import Sums, TrainState
from rnncls.system.distributed import World


def compiled_steps(
    state: TrainState, task: Task, world: World | None = None
) -> Generator[int, None, None]:
    """Train up to the task's last step on the CPU, with torch's number of threads.

    Yields how many steps were taken, as every engine does.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        compiled_run = CompiledRun(state, task, pool, world)
        yield from in_chunks(state, task, compiled_run.take, world=world)


class CompiledRun:
    """The arguments of the compiled program for one run, and the calls to it."""

    def __init__(
        self,
        state: TrainState,
        task: Task,
        pool: ThreadPoolExecutor,
        world: World | None = None,
    ) -> None:
        self.state = state
        self.world = world
        self.seed = task.config.seed
        self.pool = pool
        self.extras = extras_of(task.config)
        self.functions = load_program(
            task.config.model.cell,
            in_shares=world is not None,
            has_extras=self.extras is not None,
        )
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
        # Which rows of the table of n-grams are not 0 in each of them. Of the model's own, nobody
        # knows what a run before has left there.
        table = 0 if self.extras is None else self.extras.table
        self.touched = np.zeros((self.threads, table), np.uint8)
        self.touched[0] = 1

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
            input_keys=self._input_keys(last - first),
            noise_keys=self._noise_keys(last - first),
        )
        sums = np.array(self.state.totals.sums())
        if self.threads == 1 and self.world is None:
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
        self.inputs = StepInputs(tokens, starts, lengths, labels, edges, rates, keys, keys, keys)
        self.block = block

    def _dropout_keys(self, num_steps: int) -> Array:
        """Return the keys of the dropout of the next steps, as StepInputs wants them."""
        if self.sizes.dropout == 0:
            return np.empty((num_steps, 0), np.uint64)

        first = self.state.step
        steps = range(first, first + num_steps)
        keys = [dropout_keys(self.seed, step, self.sizes.layers) for step in steps]
        return np.array(keys, np.uint64).reshape(num_steps, self.sizes.layers - 1)

    def _input_keys(self, num_steps: int) -> Array:
        """Return the keys of dropout outside the recurrence, as StepInputs wants them."""
        if max(self.state.model.input_dropout) == 0:
            return np.empty((num_steps, 0), np.uint64)

        first = self.state.step
        keys = [input_keys(self.seed, step) for step in range(first, first + num_steps)]
        return np.array(keys, np.uint64)

    def _noise_keys(self, num_steps: int) -> Array:
        """Return the keys of the noise on states in the next steps, as StepInputs wants them."""
        if self.sizes.noise == 0:
            return np.empty((num_steps, 0), np.uint64)

        first = self.state.step
        units = self.sizes.layers * self.sizes.directions
        keys = [noise_keys(self.seed, step, units) for step in range(first, first + num_steps)]
        return np.array(keys, np.uint64)

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

        self.buffers = [
            make_buffers(self.sizes, self.extras, capacity, touched) for touched in self.touched
        ]
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
            others = self.other_gradients
            if self.world is not None:
                loss, correct = self._reduced(loss, correct, self.world)
                others = others[:0]
            finished = self.functions.finish_step(
                sizes=self.sizes,
                hyper=self.hyper,
                more=self.buffers[0].more,
                flat=self.arrays,
                others=others,
                touched=self.touched,
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

        With N threads, each takes every N-th sequence of the batch; of several processes, of the
        share of this one.
        """
        number, of = (0, 1) if self.world is None else (self.world.rank, self.world.size)
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
                share=number + of * share,
                shares=of * self.threads,
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

    def _reduced(self, loss: float, correct: int, world: World) -> tuple[float, int]:
        """Add up what the threads of all processes have found, gradients included."""
        gradients = self.flat.flat[GRADIENTS]
        for other in self.other_gradients:
            gradients += torch.from_numpy(other)
        sums = world.reduce([gradients], torch.tensor(loss), torch.tensor(correct))
        # Any row, for the other processes have other n-grams.
        self.touched[0] = 1
        return float(sums[0]), int(sums[1])
