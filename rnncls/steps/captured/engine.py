"""The captured step of one run: its model and torch's own optimizer, as one CUDA graph (see `graphs`)."""

import math
import sys
from collections.abc import Generator
from typing import Any

import torch
from torch.nn import functional as F

from rnncls.data import Block, Padded, Task
from rnncls.errors import as_out_of_memory
from rnncls.steps.captured.graphs import (
    Graphs,
    Inputs,
    Measured,
    Staged,
    Turn,
    stage,
    whole_batches,
)
from rnncls.steps.chunks import Rates, in_chunks
from rnncls.steps.eager import precision
from rnncls.steps.optim import state_names
from rnncls.steps.state import TrainState


def captured(state: TrainState, task: Task) -> Generator[int, None, None]:
    """Train up to the task's last step; yields how many steps were taken. For one direction, without dropout.

    Where a step cannot be captured, says so once and goes on with eager ones, unless captured ones were asked for.
    """
    run, broken = Captured(state, task), False

    def take(block: Block, rates: Rates, first: int, last: int) -> int:
        nonlocal broken
        try:
            return 0 if broken else run.take(block, rates, first, last)
        except RuntimeError as error:
            if task.config.train.engine == "captured" or as_out_of_memory(error):
                raise
            broken = True
            warn(error)
            run.give_up()
            return 0

    yield from in_chunks(state, task, take)


def warn(error: Exception) -> None:
    """Say that steps are eager ones from now on."""
    print(
        f"rnncls: warning[R32]: eager steps, as no step could be captured: {error}", file=sys.stderr
    )


class Captured:
    """Model, gradients and optimizer state of a run, where graphs expect them."""

    def __init__(self, state: TrainState, task: Task) -> None:
        self.state, self.task = state, task
        self.parameters = list(state.model.parameters())
        self.device = self.parameters[0].device
        self.weights = None if task.class_weights is None else task.class_weights.to(self.device)
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.lr = torch.zeros((), device=self.device)
        self.untouched = False  # whether the optimizer's state is ours and no update was done
        self.limit = task.config.train.max_grad_norm or math.inf
        limits = torch.full((1,), self.limit, device=self.device)
        self.block: Block | None = None
        self.staged: Staged  # of this block
        self.graphs = Graphs(task.config.train.batch_size, limits, self._update)

    def take(self, block: Block, rates: Rates, first: int, last: int) -> int:
        """As `chunks.Take`: stops before a step that is not finite, and before a batch of another size."""
        last = whole_batches(block, self.task.config.train.batch_size, first, last)
        if first == last:
            return 0
        if block is not self.block:
            self.block, self.staged = (
                block,
                stage(block, rates, self.graphs.batch_size, self.device),
            )
        self._attach()
        (taken,) = self.graphs.run([Turn(self.staged, first, self.state.totals)], last - first)
        self._detach(taken)
        return taken

    def give_up(self) -> None:
        """Leave model and optimizer to eager steps."""
        self._detach(0)
        self.graphs.forget()
        self.state.optimizer.param_groups[0]["capturable"] = False

    def _attach(self) -> None:
        """Put gradients, optimizer state and learning rate where the graphs expect them; an eager step moves them."""
        optimizer: Any = self.state.optimizer
        (group,) = optimizer.param_groups
        group["lr"], group["capturable"] = self.lr, True
        optimizer.found_inf = self.graphs.stop[0]  # as a GradScaler's: 1 leaves the update out
        optimizer.grad_scale = None
        optimizer._warned_capturable_if_run_uncaptured = True  # that it is, to warm up, is meant
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
            if not optimizer.state[parameter]:
                for name in state_names(self.task.config.optimizer):
                    zeros = (
                        torch.zeros((), device=self.device)
                        if name == "step"
                        else torch.zeros_like(parameter)
                    )
                    optimizer.state[parameter][name] = zeros
                    self.untouched = True

    def _detach(self, taken: int) -> None:
        """Leave the optimizer as an eager step needs it, and without a state as long as there was no update."""
        optimizer: Any = self.state.optimizer
        optimizer.found_inf = None
        if taken:
            self.untouched = False
        elif self.untouched:
            optimizer.state.clear()
            self.graphs.forget()  # they hold the state that is gone

    def _update(self, inputs: Inputs) -> Measured:
        self.lr.copy_(inputs.lr[0])
        torch._foreach_zero_(self.gradients)
        with precision(self.task.config, self.device):
            logits = self.state.model(Padded(inputs.tokens[0], inputs.lengths[0])).float()
        loss = F.cross_entropy(logits, inputs.labels[0], self.weights)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
        if self.limit < math.inf:
            torch._foreach_mul_(self.gradients, (self.limit / (norm + 1e-6)).clamp(max=1))
        finite = loss.isfinite() & norm.isfinite()
        inputs.stop.copy_(torch.maximum(inputs.stop, (~finite).float()))
        self.state.optimizer.step()
        correct = (logits.argmax(1) == inputs.labels[0]).sum()
        return Measured(loss.detach()[None], correct[None], norm.detach()[None])
