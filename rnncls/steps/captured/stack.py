"""Trains several runs of one shape as one, with a leading member dimension in all tensors.

Each run, a member of the stack, has a thread of its own, with its own batches, log and checkpoints,
as if it were alone. Its engine is `StackMember.steps`. Who waits for whom:

1. A member that needs steps leaves a request with the stack, and its thread waits.
2. The thread that finds that every member has a request, or has left, takes the steps. It takes
   them for all members at once, as many as the smallest request wants, and answers all requests.
3. It wakes the other threads. Each evaluates, logs and saves whatever is due for its run, and then
   comes back with its next request. Until it does, all others wait for it.
4. A member that finishes or fails leaves the stack, so that nobody waits for it any more.

A thread that takes steps has the stacked tensors to itself, for all other members wait or have
left. Between two of its requests a member reads and writes its own part of them only.
"""

import math
import threading
import time
from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.config import Config, SumModConfig, number
from rnncls.data import Block, Task
from rnncls.model.dropout import places_of_padded
from rnncls.model.layers import ignore_compaction
from rnncls.model.noise import noise_keys, normals, with_numbers
from rnncls.steps.captured.engine import warn_of_eager_steps
from rnncls.steps.captured.graphs import (
    Graphs,
    Inputs,
    Measured,
    PaddedBlock,
    StepRequest,
    pad_block,
    whole_batches,
)
from rnncls.steps.chunks import Pace, Rates, in_chunks
from rnncls.steps.flat import (
    FIRST_MOMENTS,
    GRADIENTS,
    SECOND_MOMENTS,
    WEIGHTS,
    FlatStorage,
    zero_rows,
)
from rnncls.steps.objective import precision
from rnncls.steps.optim import clip_scale
from rnncls.steps.state import TrainState


def shape_of(config: Config) -> Config | None:
    """Return what members of one stack have in common; None if this config cannot be stacked.

    That is the config with defaults for all that members may differ in.
    """
    if config.model.cell != "rnn" or config.train.profile:
        return None
    if not isinstance(config.data, SumModConfig):
        return None

    common = {
        "seed": 0,
        "model": config.model.model_copy(update={"recurrent_init": "default", "init_gain": 1.0}),
        "optimizer": type(config.optimizer)(name=config.optimizer.name),
        "schedule": type(config.schedule)(),
        "train": config.train.model_copy(update={"max_grad_norm": None}),
    }
    return config.model_copy(update=common)


def keys_of_block(config: Config, step: int, count: int) -> Tensor | None:
    """Return the keys of the noise in the `count` steps from `step` on, (count, num_layers) int64.

    Returns None without noise.
    """
    if config.model.state_noise == 0:
        return None
    num_layers = config.model.num_layers
    steps = range(step, step + count)
    return torch.tensor([noise_keys(config.seed, each, num_layers) for each in steps])


class Stack:
    """The meeting point of the members' threads. `members` has one entry for each of them.

    If no step can be captured, it warns once and leaves all steps to `train_step`, as captured
    steps of one run do; unless captured steps were asked for, which is an error of every member.
    """

    def __init__(self, members: int) -> None:
        # Evaluation copies the weights of a member together.
        ignore_compaction()

        # Guards all that follows, and the members' requests and answers.
        self.changed = threading.Condition()
        self.pace = Pace()
        self.members = [StackMember(self) for _ in range(members)]

        # The runs are made with the first steps: of the members that have not left by then.
        self.runs: StackedRuns | None = None
        self.places: dict[StackMember, int] = {}  # of the members in `runs`

        self.broken = False
        self.error: Exception | None = None

    def wait_for_steps(
        self, member: "StackMember", request: StepRequest, wanted: int
    ) -> tuple[int, int]:
        """Wait until steps were taken for all members.

        Returns how many steps were taken, at most `wanted`, and how many of them by this member: it
        may have had to stop before a step that is not finite.
        """
        with self.changed:
            member.request = request
            member.wanted = wanted
            self.changed.notify_all()

            # Whoever completes the round takes the steps. That may be this thread at once, or after
            # it was woken because a member has left. The answer takes the request away.
            while member.request:
                if all(other.request or other.left for other in self.members):
                    self._advance()
                else:
                    self.changed.wait()

            if self.error:
                raise RuntimeError(f"{self.error}") from self.error
            return member.answer

    def _advance(self) -> None:
        """Take steps for all members that wait, and answer them. The caller holds `changed`."""
        requests = {member: member.request for member in self.members if member.request}
        count = min(member.wanted for member in requests)

        taken: dict[StackMember, int] = {}
        if not self.broken:
            try:
                taken = self._take_steps(requests, count)
            except Exception as error:
                self._give_up(error, next(iter(requests)).task.config)

        for member in requests:
            member.request = None
            member.answer = (count, taken.get(member, 0))
        self.changed.notify_all()

    def _take_steps(
        self, requests: dict["StackMember", StepRequest], count: int
    ) -> dict["StackMember", int]:
        """Take `count` steps; return how many each member has taken."""
        if self.runs is None:
            self.places = {member: place for place, member in enumerate(requests)}
            self.runs = StackedRuns([(member.state, member.task) for member in requests])

        started_at = time.perf_counter()
        by_place = {self.places[member]: request for member, request in requests.items()}
        taken = self.runs.take_steps(by_place, count)
        self.pace.note(count, time.perf_counter() - started_at)
        return {member: taken[self.places[member]] for member in requests}

    def _give_up(self, error: Exception, config: Config) -> None:
        """Leave all steps to `train_step`, or have every member raise the error."""
        self.broken = True
        self.free()

        # RuntimeError includes a lack of memory: what is too much for all may do for each.
        if isinstance(error, RuntimeError) and config.train.engine == "auto":
            warn_of_eager_steps(error)
        else:
            self.error = error

    def free(self) -> None:
        """Free the memory of the runs. The caller holds `changed`."""
        # The graphs now, and not when Python finds the cycle of runs and graphs, which may be in a
        # capture.
        if self.runs is not None:
            self.runs.graphs.forget()
        self.runs = None


class StackMember:
    """One run in a stack, as its own thread sees it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.left = False
        self.state: TrainState
        self.task: Task

        # The block whose steps are being taken, as it is and padded.
        self.block: Block | None = None
        self.padded: PaddedBlock

        # Set by this member while it waits, and taken away with the answer.
        self.request: StepRequest | None = None
        self.wanted = 0  # steps, at most

        # How many steps were taken, and how many of them by this member.
        self.answer = (0, 0)

    def steps(self, state: TrainState, task: Task) -> Generator[int, None, None]:
        """Train with the steps of the stack. An engine (see `engines.Engine`)."""
        self.state = state
        self.task = task
        try:
            yield from in_chunks(state, task, self.take_chunk, self.stack.pace)
        finally:
            self.leave()

    def leave(self, _: object = None) -> None:
        """Let no other member wait for this one any more. May be called more than once.

        The argument is ignored, so that this can be the callback of a future.
        """
        with self.stack.changed:
            self.left = True
            self.request = None
            if all(member.left for member in self.stack.members):
                self.stack.free()
            self.stack.changed.notify_all()

    def take_chunk(self, block: Block, rates: Rates, first: int, last: int) -> int:
        """Take steps as `chunks.in_chunks` asks for.

        Stops before a step that is not finite, and before a batch of another size.
        """
        batch_size = self.task.config.train.batch_size
        if block is not self.block:
            # Blocks are padded here, in parallel, and not where all members wait for it.
            keys = keys_of_block(self.task.config, self.state.step - first, len(rates))
            self.padded = pad_block(block, rates, batch_size, self.state.device, keys)
            self.block = block

        # The stack takes as many steps as the smallest request wants, so this may be several calls.
        last = whole_batches(block, batch_size, first, last)
        step = first
        while step < last:
            request = StepRequest(self.padded, step, self.state.totals)
            count, taken = self.stack.wait_for_steps(self, request, last - step)
            step += taken
            if taken < count:
                break
        return step - first


class StackedRuns:
    """Weights and optimizer states of M runs side by side, and the steps of all of them at once."""

    def __init__(self, runs: Sequence[tuple[TrainState, Task]]) -> None:
        state, task = runs[0]
        # Of the config only what `shape_of` keeps is used, which is the same for all.
        self.config = task.config
        self.device = state.device

        parameters = dict(state.model.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in parameters.items()}
        size = sum(parameter.numel() for parameter in parameters.values())
        self.flat = zero_rows(size, len(runs), device=self.device)  # (M, ROWS, P)
        self.counts = torch.zeros(len(runs), len(parameters), device=self.device)

        self.states: list[TrainState] = []
        self.storages: list[FlatStorage] = []
        for (state, task), flat, counts in zip(runs, self.flat, self.counts, strict=True):
            self.states.append(state)
            self.storages.append(FlatStorage(state, task.config, flat, counts))

        # What members may differ in, (M, 1) each.
        optimizers = [task.config.optimizer for _, task in runs]
        limits = [task.config.train.max_grad_norm or math.inf for _, task in runs]
        self.weight_decay = self._column(
            [number(optimizer.weight_decay) for optimizer in optimizers]
        )
        betas = torch.tensor(
            [optimizer.betas for optimizer in optimizers], dtype=torch.float64, device=self.device
        )
        self.betas = (betas[:, :1], betas[:, 1:])
        self.eps = self._column([optimizer.eps for optimizer in optimizers])
        self.momentum = self._column([optimizer.momentum for optimizer in optimizers])
        self.limit = self._column(limits)

        # The members' embeddings are one table, in which each member's ids begin at its offset.
        num_embeddings = self.shapes["embedding.weight"][0]
        members = torch.arange(len(runs), device=self.device)[:, None, None]
        self.offsets = members * num_embeddings  # (M, 1, 1)

        self.graphs = Graphs(self.config.train.batch_size, self.limit[:, 0], self._update)

    def take_steps(self, requests: dict[int, StepRequest], count: int) -> list[int]:
        """Take `count` steps with the members that have a request, by their place in the stack.

        Returns how many steps each of all M members has taken.
        """
        for place in requests:
            self.storages[place].attach()

        places = range(len(self.states))
        taken = self.graphs.run([requests.get(place) for place in places], count)

        # Leave the optimizers as they would be after these steps of their own.
        for place, request in requests.items():
            self.storages[place].count(taken[place])
            last = request.first + max(0, taken[place] - 1)
            (group,) = self.states[place].optimizer.param_groups
            group["lr"] = float(request.block.rates[last])
        return taken

    def _column(self, values: list[float]) -> Tensor:
        """Return one number for each member, (M, 1)."""
        return torch.tensor(values, device=self.device)[:, None]

    def _update(self, inputs: Inputs) -> Measured:
        """Train all members on one batch each, without a look at any number on the device."""
        weights = self.flat[:, WEIGHTS].detach().requires_grad_()  # (M, P)
        with precision(self.config, self.device):
            logits = self._logits(weights, inputs)
            logits = logits.float()  # (M, B, num_classes)

        # A member's loss depends on its own weights alone, so the gradient of the sum of all losses
        # is the gradient of each.
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            inputs.labels.flatten(),
            reduction="none",
            label_smoothing=self.config.train.label_smoothing,
        )
        loss = loss.view(inputs.labels.shape).mean(1)  # (M,)
        (gradient,) = torch.autograd.grad(loss.sum(), weights)  # (M, P)

        norm = torch.linalg.vector_norm(gradient, dim=1)  # (M,)
        finite = loss.isfinite() & norm.isfinite()
        inputs.stop.copy_(torch.maximum(inputs.stop, (~finite).float()))
        going = (inputs.stop == 0)[:, None]  # (M, 1)

        # Members that have stopped keep their last gradient, for histograms.
        scale = clip_scale(self.limit, norm[:, None])
        gradient = torch.where(going, gradient * scale, self.graphs.zero)
        self.flat[:, GRADIENTS].copy_(torch.where(going, gradient, self.flat[:, GRADIENTS]))
        self._optimize(gradient, inputs.lr[:, None], going)

        correct = (logits.argmax(2) == inputs.labels).sum(1)  # (M,)
        return Measured(loss.detach(), correct, norm)

    def _logits(self, weights: Tensor, inputs: Inputs) -> Tensor:
        """Return what `RNNClassifier.forward` returns for padded sequences: (M, B, num_classes).

        `weights`: (M, P).
        """
        named = self._parameters(weights)
        members, rows, _ = inputs.tokens.shape

        table = named["embedding.weight"].flatten(0, 1)
        ids = inputs.tokens.transpose(1, 2) + self.offsets
        data = F.embedding(ids, table)  # (M, T, B, embedding_dim)
        for layer in range(self.config.model.num_layers):
            numbers = self._numbers(layer, inputs)
            data = self._layer(named, layer, data, numbers)  # (M, T, B, hidden_size)

        last = (inputs.lengths - 1).view(members, 1, rows, 1).expand(-1, -1, -1, data.shape[3])
        summary = data.gather(1, last)[:, 0]  # (M, B, hidden_size)
        return torch.baddbmm(named["head.bias"][:, None], summary, named["head.weight"].mT)

    def _parameters(self, weights: Tensor) -> dict[str, Tensor]:
        """Return views of the weights (M, P) in the parameters' shapes (M, ...), by their names."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = torch.split(weights, sizes, 1)
        named = {}
        for part, (name, shape) in zip(parts, self.shapes.items(), strict=True):
            named[name] = part.view(-1, *shape)
        return named

    def _numbers(self, layer: int, inputs: Inputs) -> Tensor | None:
        """Return the normal numbers of a layer's noise, (M, T, B, hidden_size); None without it."""
        model = self.config.model
        if model.state_noise == 0:
            return None
        # Members differ in their keys, and their batches have the same places.
        places = places_of_padded(inputs.tokens[0]) + inputs.keys[:, layer, None, None]
        return normals(0, places, model.hidden_size)

    def _layer(
        self, named: dict[str, Tensor], layer: int, data: Tensor, numbers: Tensor | None
    ) -> Tensor:
        """Return the states (M, T, B, hidden_size) of one layer for its input (M, T, B, D).

        `numbers`: of the noise on them, in the same shape.
        """
        members, width, rows, _ = data.shape
        model = self.config.model
        activate = torch.tanh if model.nonlinearity == "tanh" else torch.relu

        # Converted here once, or autocast would convert them in each time step.
        dtype = named["head.weight"].dtype
        if self.config.train.precision == "bfloat16":
            dtype = torch.bfloat16
        w_ih = named[f"rnn.weight_ih_l{layer}"].mT.to(dtype)
        w_hh = named[f"rnn.weight_hh_l{layer}"].mT.to(dtype)

        inputs = torch.bmm(data.flatten(1, 2), w_ih)  # (M, T * B, hidden_size)
        if model.bias:
            bias = named[f"rnn.bias_ih_l{layer}"] + named[f"rnn.bias_hh_l{layer}"]
            inputs = inputs + bias[:, None]

        # h_t = f(z_t + h_(t-1) W_hh^T), from h_0 = 0
        state = None
        states: list[Tensor] = []
        for step in inputs.view(members, width, rows, -1).unbind(1):
            if state is not None and numbers is not None:
                state = with_numbers(state, numbers[:, len(states)], model.state_noise)
            state = activate(step if state is None else torch.baddbmm(step, state, w_hh))
            states.append(state)
        return torch.stack(states, 1)

    def _optimize(self, gradient: Tensor, lr: Tensor, going: Tensor) -> None:
        """Take one step of torch.optim's Adam, AdamW or SGD with the members that are `going`.

        `gradient`: (M, P); `lr`: (M, 1); `going`: (M, 1).
        """
        weights = self.flat[:, WEIGHTS]
        first = self.flat[:, FIRST_MOMENTS]

        # 1 for members that take the step. 0 leaves a member as it is, without a branch, which a
        # graph cannot have.
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

        # `counts` is brought up to date after a chunk only; `taken` has the steps since then.
        updates = (self.counts[:, 0] + self.graphs.taken)[:, None] + 1
        second = self.flat[:, SECOND_MOMENTS]
        square = gradient.square()
        beta1, beta2 = self.betas  # (M, 1) each
        first.lerp_(gradient, (share * (1 - beta1)).float())
        second.lerp_(square, (share * (1 - beta2)).float())

        rest1 = 1 - beta1**updates
        rest2 = 1 - beta2**updates
        denominator = (second / rest2.float()).sqrt() + self.eps
        update = (lr / rest1).float() * first / denominator
        # The update of a member that does not take the step may be 0 / 0.
        weights.sub_(torch.where(going, update, self.graphs.zero))
