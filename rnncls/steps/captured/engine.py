"""Captured steps of one run: its model and PyTorch's optimizer as CUDA graphs (see `graphs`)."""

import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.data import Block, Padded, Task
from rnncls.errors import as_out_of_memory
from rnncls.steps.captured.graphs import (
    Graphs,
    Inputs,
    Measured,
    PaddedBlock,
    StepRequest,
    pad_block,
    whole_batches,
)
from rnncls.steps.chunks import Rates, in_chunks
from rnncls.steps.objective import precision
from rnncls.steps.optim import clip_scale, state_names
from rnncls.steps.state import TrainState
from rnncls.system.streams import say


def captured_steps(state: TrainState, task: Task) -> Generator[int, None, None]:
    """Train with captured steps. An engine (see `engines.Engine`) for one direction, no dropout.

    If a step cannot be captured, this warns once and continues with eager steps.

    Raises: RuntimeError if a step cannot be captured and train.engine asks for captured ones.
    """
    run = CapturedRun(state, task)
    broken = False

    def take_chunk(block: Block, rates: Rates, first: int, last: int) -> int:
        nonlocal broken
        if broken:
            return 0
        try:
            return run.take_chunk(block, rates, first, last)
        except RuntimeError as error:
            # Eager steps would need as much memory, so they would not help.
            if task.config.train.engine == "captured" or as_out_of_memory(error):
                raise
            broken = True
            warn_of_eager_steps(error)
            run.give_up()
            return 0

    try:
        yield from in_chunks(state, task, take_chunk)
    finally:
        # Now, and not when Python finds the cycle of run and graphs, which may be in a capture.
        run.graphs.forget()


def warn_of_eager_steps(error: Exception) -> None:
    """Tell people that steps are eager from now on, and why."""
    say(f"rnncls: warning[R32]: eager steps from now on, since no step could be captured: {error}")


class CapturedRun:
    """Keeps a run's model, gradients and optimizer state where its graphs expect them."""

    def __init__(self, state: TrainState, task: Task) -> None:
        self.state = state
        self.task = task
        self.device = state.device
        self.weights = None if task.class_weights is None else task.class_weights.to(self.device)

        # Graphs know tensors by their address. An eager step makes gradients of its own and sets
        # the learning rate to a number; `_attach` puts these tensors back.
        self.parameters = list(state.model.parameters())
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.lr = torch.zeros((), device=self.device)

        # Whether the optimizer's state is ours and no update was done. Before its first update,
        # PyTorch's optimizer has no state, and checkpoints show that.
        self.untouched = False

        self.limit = task.config.train.max_grad_norm or math.inf
        limits = torch.full((1,), self.limit, device=self.device)
        self.graphs = Graphs(task.config.train.batch_size, limits, self._update)

        # The block whose steps are being taken, as it is and padded.
        self.block: Block | None = None
        self.padded: PaddedBlock

    def take_chunk(self, block: Block, rates: Rates, first: int, last: int) -> int:
        """Take steps as `chunks.in_chunks` asks for.

        Stops before a step that is not finite, and before a batch of another size.
        """
        last = whole_batches(block, self.graphs.batch_size, first, last)
        if first == last:
            return 0

        if block is not self.block:
            self.padded = pad_block(block, rates, self.graphs.batch_size, self.device)
            self.block = block

        self._attach()
        request = StepRequest(self.padded, first, self.state.totals)
        (taken,) = self.graphs.run([request], last - first)
        self._detach(taken)
        return taken

    def give_up(self) -> None:
        """Leave model and optimizer to eager steps."""
        self._detach(0)
        self.graphs.forget()
        self.state.optimizer.param_groups[0]["capturable"] = False

    def _attach(self) -> None:
        """Put gradients, optimizer state and learning rate where the graphs expect them."""
        optimizer: Any = self.state.optimizer
        (group,) = optimizer.param_groups
        group["lr"] = self.lr
        group["capturable"] = True

        # The optimizer takes these two from a GradScaler: found_inf of 1 leaves the update out.
        optimizer.found_inf = self.graphs.stop[0]
        optimizer.grad_scale = None
        # Steps that warm up run uncaptured, of which PyTorch would warn.
        optimizer._warned_capturable_if_run_uncaptured = True

        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
            if not optimizer.state[parameter]:
                self._start_optimizer(parameter)

    def _start_optimizer(self, parameter: Tensor) -> None:
        """Give the optimizer its state of this parameter, which its first step would make."""
        for name in state_names(self.task.config.optimizer):
            if name == "step":
                zeros = torch.zeros((), device=self.device)
            else:
                zeros = torch.zeros_like(parameter)
            self.state.optimizer.state[parameter][name] = zeros
            self.untouched = True

    def _detach(self, taken: int) -> None:
        """Leave the optimizer as an eager step needs it, and without state before any update."""
        optimizer: Any = self.state.optimizer
        optimizer.found_inf = None
        if taken:
            self.untouched = False
        elif self.untouched:
            optimizer.state.clear()
            # They refer to the state that is gone.
            self.graphs.forget()

    def _update(self, inputs: Inputs) -> Measured:
        """Train on one batch, without a look at any number on the device."""
        # All is written into tensors that are there already: a graph knows their addresses, and a
        # Python number in it would be the same in every replay.
        self.lr.copy_(inputs.lr[0])
        torch._foreach_zero_(self.gradients)

        with precision(self.task.config, self.device):
            logits = self.state.model(Padded(inputs.tokens[0], inputs.lengths[0])).float()
        loss = F.cross_entropy(
            logits,
            inputs.labels[0],
            self.weights,
            label_smoothing=self.task.config.train.label_smoothing,
        )
        loss.backward()  # type: ignore[no-untyped-call]

        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
        if self.limit < math.inf:
            torch._foreach_mul_(self.gradients, clip_scale(self.limit, norm))

        # `stop` is the optimizer's found_inf, so a step that is not finite changes no weight.
        finite = loss.isfinite() & norm.isfinite()
        inputs.stop.copy_(torch.maximum(inputs.stop, (~finite).float()))
        self.state.optimizer.step()

        # (1,) each, since a run alone is the only member.
        correct = (logits.argmax(1) == inputs.labels[0]).sum()
        return Measured(loss.detach()[None], correct[None], norm.detach()[None])
