"""Steps as CUDA graphs: a whole step, from looking up its batch to the optimizer and the sums, is one replay.

A small step in eager PyTorch is hundreds of launches that the GPU waits for. A graph has static shapes, so there is one
for each width that batches are padded to; a block of batches is copied to the device at once, and a counter there says
which one is next. Nothing is read back but once per chunk. Learning rates lie on the device, too.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.data import Block, Padded, Task
from rnncls.errors import as_out_of_memory
from rnncls.optim import state_names
from rnncls.state import TrainState
from rnncls.steps.chunks import Rates, in_chunks
from rnncls.steps.eager import precision

MOST_WIDTHS = 8


def captured(state: TrainState, task: Task) -> Iterator[int]:
    """Train up to the task's last step; yields how many steps were taken. For one direction, without dropout.

    Where a step cannot be captured, says so once and goes on with eager ones, unless captured ones were asked for.
    """
    graphs, broken = Graphs(state, task), False

    def take(block: Block, rates: Rates, first: int, last: int) -> int:
        nonlocal broken
        try:
            return 0 if broken else graphs.take(block, rates, first, last)
        except RuntimeError as error:
            if task.config.train.engine == "captured" or as_out_of_memory(error):
                raise
            broken = True
            print(f"rnncls: warning[R32]: eager steps, as no step could be captured: {error}", file=sys.stderr)
            graphs.give_up()
            return 0

    yield from in_chunks(state, task, take)


class Graphs:
    """A step on static memory, and its graphs by width.

    On the CPU the same step is run as it is: that is what tests compare with the eager one where there is no GPU.
    """

    def __init__(self, state: TrainState, task: Task) -> None:
        self.state, self.task = state, task
        self.parameters = list(state.model.parameters())
        self.device = self.parameters[0].device
        self.batch_size, self.limit = task.config.train.batch_size, task.config.train.max_grad_norm or math.inf
        self.weights = None if task.class_weights is None else task.class_weights.to(self.device)
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.lr = torch.zeros((), device=self.device)
        self.stop = torch.zeros((), device=self.device)  # 1 from a step on that is not finite: no update any more
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.taken = torch.zeros((), dtype=torch.int64, device=self.device)
        self.sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        self.none_taken = torch.zeros(5, dtype=torch.float64, device=self.device)
        self.untouched = False  # whether the optimizer's state is ours and no update was done
        self.block: Block | None = None
        self.static: dict[str, Tensor] = {}
        self.steps: dict[int, Callable[[], object]] = {}
        self.pool: Any = None  # of the graphs there are; with the last of them it goes

    def take(self, block: Block, rates: Rates, first: int, last: int) -> int:
        """As `chunks.Take`: stops before a step that is not finite, and before a batch of another size."""
        sizes = block.edges.diff()
        odd = (sizes[first:last] != self.batch_size).nonzero()
        last = first + int(odd[0]) if len(odd) else last
        if first == last:
            return 0
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return self._replay(block, rates, first, last)

    def _replay(self, block: Block, rates: Rates, first: int, last: int) -> int:
        self._attach()
        if block is not self.block:
            self._upload(block, rates)
        totals = self.state.totals
        before = [totals.loss, totals.correct, totals.sequences, totals.grad_norm, totals.clipped]
        self.sums.copy_(torch.tensor(before, dtype=torch.float64))
        self.position.fill_(first)
        self.stop.zero_()
        self.taken.zero_()
        for step in range(first, last):
            self._step_of(self._width_of(block, step))()
        taken = int(self.taken)  # the one time to wait
        totals.loss, correct, sequences, totals.grad_norm, clipped = self.sums.tolist()
        totals.correct, totals.sequences, totals.clipped = int(correct), int(sequences), int(clipped)
        totals.steps += taken
        self._detach(taken)
        return taken

    def _attach(self) -> None:
        """Put gradients, optimizer state and learning rate where the graphs expect them; an eager step moves them."""
        optimizer: Any = self.state.optimizer
        (group,) = optimizer.param_groups
        group["lr"], group["capturable"] = self.lr, True
        optimizer.found_inf, optimizer.grad_scale = self.stop, None  # as a GradScaler does: 1 leaves the update out
        optimizer._warned_capturable_if_run_uncaptured = True  # that it is, to warm up, is meant
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
            if not optimizer.state[parameter]:
                for name in state_names(self.task.config.optimizer):
                    zeros = torch.zeros((), device=self.device) if name == "step" else torch.zeros_like(parameter)
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
            self.steps.clear()  # they hold the state that is gone

    def give_up(self) -> None:
        """Leave model and optimizer to eager steps."""
        self._detach(0)
        self.steps.clear()
        self.state.optimizer.param_groups[0]["capturable"] = False

    def _upload(self, block: Block, rates: Rates) -> None:
        """Copy a block to the device; larger memory than before makes the graphs void."""
        widest, self.block = int(block.lengths.max()), block
        counts, rows = block.edges.diff(), torch.arange(self.batch_size)
        index = (block.edges[:-1, None] + rows).clamp(max=len(block.labels) - 1)  # odd batches are never looked at
        positions = block.starts[index].unsqueeze(2) + torch.arange(widest)
        whole = {
            "tokens": block.tokens[positions.clamp_(max=len(block.tokens) - 1)],  # (K, B, T) int32
            "lengths": block.lengths[index],
            "labels": block.labels[index],
            "rates": torch.from_numpy(rates).float(),
        }
        static = self.static.get("tokens")
        if static is None or len(static) < len(counts) or static.shape[2] < widest:
            steps = max(len(counts), 0 if static is None else len(static))
            widest = max(widest, 0 if static is None else static.shape[2])
            shapes = {"tokens": (steps, self.batch_size, widest), "rates": (steps,)}
            other = (steps, self.batch_size)
            self.static = {
                name: torch.zeros(shapes.get(name, other), dtype=part.dtype, device=self.device)
                for name, part in whole.items()
            }
            self.steps.clear()
        for name, part in whole.items():
            place = self.static[name][: len(part)]
            (place[:, :, : part.shape[2]] if name == "tokens" else place).copy_(part)

    def _width_of(self, block: Block, step: int) -> int:
        """What the batch is padded to: one of at most MOST_WIDTHS."""
        first, last = block.edges[step : step + 2].tolist()
        widest = self.static["tokens"].shape[2]
        grain = max(1, -(-widest // MOST_WIDTHS))
        return min(widest, -(-int(block.lengths[first:last].max()) // grain) * grain)

    def _step_of(self, width: int) -> Callable[[], object]:
        if width not in self.steps:
            if self.device.type == "cuda" and not self.steps:
                self.pool = torch.cuda.graph_pool_handle()
            self._warm_up(width)
            self.steps[width] = self._capture(width) if self.device.type == "cuda" else lambda: self._step(width)
        return self.steps[width]

    def _warm_up(self, width: int) -> None:
        """Run the step that is next with updates off, without leaving a trace in counters and sums."""
        kept = [(part, part.clone()) for part in (self.position, self.stop, self.taken, self.sums)]
        stream = torch.cuda.Stream() if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if stream:
            stream.wait_stream(torch.cuda.current_stream())
        for _ in range(3):
            self.stop.fill_(1)
            with torch.cuda.stream(stream):
                self._step(width)
            if stream:
                torch.cuda.current_stream().wait_stream(stream)
            for part, value in kept:
                part.copy_(value)
            if stream:
                stream.wait_stream(torch.cuda.current_stream())

    def _capture(self, width: int) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self._step(width)  # nothing is computed now
        return graph.replay

    def _step(self, width: int) -> None:
        config, static = self.task.config, self.static
        tokens = static["tokens"].index_select(0, self.position)[0, :, :width]
        lengths, labels = (static[name].index_select(0, self.position)[0] for name in ("lengths", "labels"))
        self.lr.copy_(static["rates"].index_select(0, self.position)[0])
        torch._foreach_zero_(self.gradients)
        with precision(config, self.device):
            logits = self.state.model(Padded(tokens.long(), lengths)).float()
        loss = F.cross_entropy(logits, labels, self.weights)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.gradients)))
        if self.limit < math.inf:
            torch._foreach_mul_(self.gradients, (self.limit / (norm + 1e-6)).clamp(max=1))
        finite = loss.isfinite() & norm.isfinite()
        self.stop.copy_(torch.maximum(self.stop, (~finite).float()))
        self.state.optimizer.step()
        done = self.stop == 0
        loss, norm = loss.detach(), norm.detach()
        correct = (logits.argmax(1) == labels).sum()
        values = [loss * self.batch_size, correct, torch.full_like(correct, self.batch_size), norm, norm > self.limit]
        self.sums += torch.where(done, torch.stack([value.double() for value in values]), self.none_taken)
        self.taken += done
        self.position += 1
