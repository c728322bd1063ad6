"""Runs of one shape as one: a leading member dimension, and batched matrix products.

Each run goes on in a thread of its own, with its own batches, log and checkpoints, as if it were alone. When all of
them wait for steps, one thread takes those steps for all at once: as many as the member that waits for the fewest.
"""

import math
import threading
import time
import warnings
from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.config import Config, SumModConfig
from rnncls.data import Block, Task
from rnncls.steps.captured.engine import warn
from rnncls.steps.captured.graphs import (
    Graphs,
    Inputs,
    Measured,
    Staged,
    Turn,
    stage,
    whole_batches,
)
from rnncls.steps.chunks import Pace, Rates, in_chunks
from rnncls.steps.eager import precision
from rnncls.steps.flat import FlatState, storage
from rnncls.steps.state import TrainState


def shape_of(config: Config) -> Config | None:
    """The config without what members of one stack may differ in; None where there is no stack for it."""
    if (
        config.model.cell != "rnn"
        or config.train.profile
        or not isinstance(config.data, SumModConfig)
    ):
        return None
    parts = {
        "model": config.model.model_copy(update={"recurrent_init": "default", "init_gain": 1.0}),
        "optimizer": type(config.optimizer)(name=config.optimizer.name),
        "schedule": type(config.schedule)(),
        "train": config.train.model_copy(update={"max_grad_norm": None}),
    }
    return config.model_copy(update={"seed": 0, **parts})


class Stack:
    """What the threads of some runs share; each has one of the seats, and leaves it in the end.

    Where no step can be captured, says so once and leaves all steps to eager ones; but only where any steps will do.
    """

    def __init__(self, members: int) -> None:
        # evaluation copies the weights of a member together, and torch says so each time
        warnings.filterwarnings(
            "ignore", "RNN module weights are not part of single contiguous chunk"
        )
        self.changed, self.pace = threading.Condition(), Pace()
        self.seats = [Seat(self) for _ in range(members)]
        self.places: dict[Seat, int] = {}  # in what is stacked; from the first step on
        self.stacked: Stacked | None = None
        self.broken = False
        self.error: Exception | None = None

    def wait_for_steps(self, seat: "Seat", turn: Turn, wanted: int) -> tuple[int, int]:
        """Wait until steps were taken; returns how many, at most so many as wanted, and how many by this member."""
        with self.changed:
            seat.turn, seat.wanted = turn, wanted
            self.changed.notify_all()
            while seat.turn:
                if all(other.turn or other.left for other in self.seats):
                    self._advance()
                else:
                    self.changed.wait()
            if self.error:
                raise RuntimeError(f"{self.error}") from self.error
            return seat.answer

    def _advance(self) -> None:
        """Take steps with all members that wait, when nobody else is about to. For a thread that holds `changed`."""
        waiting = {seat: seat.turn for seat in self.seats if seat.turn}
        count = min(seat.wanted for seat in waiting)
        try:
            taken = {} if self.broken else self._take(waiting, count)
        except Exception as error:
            taken, self.broken, self.stacked = {}, True, None
            if (
                isinstance(error, RuntimeError)
                and next(iter(waiting)).task.config.train.engine == "auto"
            ):
                warn(error)  # also without memory for all at once
            else:
                self.error = error  # for everyone
        for seat in waiting:
            seat.turn, seat.answer = None, (count, taken.get(seat, 0))
        self.changed.notify_all()

    def _take(self, waiting: dict["Seat", Turn], count: int) -> dict["Seat", int]:
        if self.stacked is None:
            self.places = {seat: place for place, seat in enumerate(waiting)}
            self.stacked = Stacked([(seat.state, seat.task) for seat in waiting])
        started_at = time.perf_counter()
        taken = self.stacked.take(
            {self.places[seat]: turn for seat, turn in waiting.items()}, count
        )
        self.pace.note(count, time.perf_counter() - started_at)
        return {seat: taken[self.places[seat]] for seat in waiting}


class Seat:
    """One member's place in a stack."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.turn: Turn | None = None  # where the steps begin that it waits for
        self.wanted, self.answer, self.left = 0, (0, 0), False
        self.state: TrainState
        self.task: Task
        self.block: Block | None = None
        self.staged: Staged  # of this block

    def steps(self, state: TrainState, task: Task) -> Generator[int, None, None]:
        """An engine (see `steps.choose`)."""
        self.state, self.task = state, task
        try:
            yield from in_chunks(state, task, self._take, self.stack.pace)
        finally:
            self.leave()

    def leave(self, _: object = None) -> None:
        """No longer be waited for."""
        with self.stack.changed:
            self.left, self.turn = True, None
            if all(seat.left for seat in self.stack.seats):
                self.stack.stacked = None  # and its memory
            self.stack.changed.notify_all()

    def _take(self, block: Block, rates: Rates, first: int, last: int) -> int:
        batch_size = self.task.config.train.batch_size
        if block is not self.block:  # here and not where all wait for it
            device = next(self.state.model.parameters()).device
            self.block, self.staged = block, stage(block, rates, batch_size, device)
        last, at = whole_batches(block, batch_size, first, last), first
        while at < last:
            asked, taken = self.stack.wait_for_steps(
                self, Turn(self.staged, at, self.state.totals), last - at
            )
            at += taken
            if taken < asked:
                break
        return at - first


class Stacked:
    """Weights and optimizer states of M runs side by side, and a step of all of them."""

    def __init__(self, runs: Sequence[tuple[TrainState, Task]]) -> None:
        state, task = runs[0]
        configs = [task.config for _, task in runs]
        parameters = dict(state.model.named_parameters())
        self.config, self.device = task.config, next(iter(parameters.values())).device
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        size = sum(parameter.numel() for parameter in parameters.values())
        self.flat = storage(size, len(runs), device=self.device)  # (M, ROWS, P)
        self.counts = torch.zeros(len(runs), len(parameters), device=self.device)
        self.runs = [
            (state, FlatState(state, task.config, flat, counts))
            for (state, task), flat, counts in zip(runs, self.flat, self.counts, strict=True)
        ]
        self.weight_decay = self._column([config.optimizer.weight_decay for config in configs])
        betas = torch.tensor(
            [config.optimizer.betas for config in configs], dtype=torch.float64, device=self.device
        )
        self.betas = betas[:, :1], betas[:, 1:]
        self.eps = self._column([config.optimizer.eps for config in configs])
        self.momentum = self._column([config.optimizer.momentum for config in configs])
        self.limit = self._column([config.train.max_grad_norm or math.inf for config in configs])
        self.offsets = (
            torch.arange(len(runs), device=self.device)[:, None, None]
            * self.shapes["embedding.weight"][0]
        )
        self.graphs = Graphs(self.config.train.batch_size, self.limit[:, 0], self._update)

    def take(self, turns: dict[int, Turn], count: int) -> list[int]:
        """Take so many steps with the members that have a turn; how many each of them took."""
        for place in turns:
            self.runs[place][1].attach()
        taken = self.graphs.run([turns.get(place) for place in range(len(self.runs))], count)
        for place, turn in turns.items():
            state, flat = self.runs[place]
            flat.count(taken[place])
            state.optimizer.param_groups[0]["lr"] = float(
                turn.staged.rates[turn.first + max(0, taken[place] - 1)]
            )
        return taken

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, device=self.device)[:, None]

    def _update(self, inputs: Inputs) -> Measured:
        weights = self.flat[:, 0].detach().requires_grad_()
        with precision(self.config, self.device):
            logits = self._logits(
                weights, inputs.tokens, inputs.lengths
            ).float()  # (M, B, num_classes)
        loss = F.cross_entropy(logits.flatten(0, 1), inputs.labels.flatten(), reduction="none")
        loss = loss.view(inputs.labels.shape).mean(1)
        (gradient,) = torch.autograd.grad(loss.sum(), weights)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        finite = loss.isfinite() & norm.isfinite()
        inputs.stop.copy_(torch.maximum(inputs.stop, (~finite).float()))
        going = (inputs.stop == 0)[:, None]
        scale = (self.limit / (norm[:, None] + 1e-6)).clamp(max=1)
        gradient = torch.where(going, gradient * scale, self.graphs.zero)
        self.flat[:, 1].copy_(torch.where(going, gradient, self.flat[:, 1]))
        self._optimize(gradient, inputs.lr[:, None], going)
        correct = (logits.argmax(2) == inputs.labels).sum(1)
        return Measured(loss.detach(), correct, norm)

    def _logits(self, weights: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """As `RNNClassifier.forward` for padded sequences."""
        parts = torch.split(weights, [shape.numel() for shape in self.shapes.values()], 1)
        named = {
            name: part.view(-1, *shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }
        members, rows, width = tokens.shape
        model = self.config.model
        table = named["embedding.weight"].flatten(0, 1)
        data = F.embedding(tokens.transpose(1, 2) + self.offsets, table)  # (M, T, B, embedding_dim)
        dtype = (
            torch.bfloat16 if self.config.train.precision == "bfloat16" else weights.dtype
        )  # once, not in each step
        activate = torch.tanh if model.nonlinearity == "tanh" else torch.relu
        for layer in range(model.num_layers):
            w_ih, w_hh = (
                named[f"rnn.weight_{kind}_l{layer}"].mT.to(dtype) for kind in ("ih", "hh")
            )
            inputs = torch.bmm(data.flatten(1, 2), w_ih)
            if model.bias:
                inputs = (
                    inputs
                    + (named[f"rnn.bias_ih_l{layer}"] + named[f"rnn.bias_hh_l{layer}"])[:, None]
                )
            state, states = None, []
            for step in inputs.view(members, width, rows, -1).unbind(1):
                state = activate(step if state is None else torch.baddbmm(step, state, w_hh))
                states.append(state)
            data = torch.stack(states, 1)  # (M, T, B, hidden_size)
        place = (lengths - 1).view(members, 1, rows, 1).expand(-1, -1, -1, data.shape[3])
        return torch.baddbmm(
            named["head.bias"][:, None], data.gather(1, place)[:, 0], named["head.weight"].mT
        )

    def _optimize(self, gradient: Tensor, lr: Tensor, going: Tensor) -> None:
        """torch.optim's Adam, AdamW and SGD, for the members whose row of `going` (M, 1) is true."""
        weights, first, second = self.flat[:, 0], self.flat[:, 2], self.flat[:, 3]
        share = going.float()
        name = self.config.optimizer.name
        if name != "adamw":
            gradient = gradient + self.weight_decay * weights
        if name == "sgd":
            first.lerp_(self.momentum * first + gradient, share)
            weights.sub_(share * lr * first)
            return
        if name == "adamw":
            weights.mul_(1 - share * lr * self.weight_decay)
        updates = (self.counts[:, 0] + self.graphs.taken)[:, None] + 1
        for moment, new, beta in zip(
            (first, second), (gradient, gradient.square()), self.betas, strict=True
        ):
            moment.lerp_(new, (share * (1 - beta)).float())
        rest1, rest2 = (1 - beta**updates for beta in self.betas)
        denominator = (second / rest2.float()).sqrt() + self.eps
        update = (lr / rest1).float() * first / denominator
        weights.sub_(torch.where(going, update, self.graphs.zero))  # of the others it may be 0 / 0
