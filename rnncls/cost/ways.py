"""The two ways of taking a step: with the steps of rnncls, and with torch's own modules.

Each has a batch, and can compute its gradients and take a whole step. Its weights stay what they
are, but for rounding: the learning rate is next to zero, so that no loss grows beyond all bounds.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.config import Config, ScheduleConfig, SumModConfig
from rnncls.cost.cases import Case
from rnncls.data import Batch, PaddedBatch, SumModTask
from rnncls.steps.eager import draw_keys, layout_of, train_step
from rnncls.steps.objective import gradients_of_batch, precision
from rnncls.steps.optim import build_optimizer
from rnncls.system.device import prepare_device
from rnncls.training.states import new_state

ENDLESS = 2**40  # steps
MOST_SKIPPED = 2**20  # steps
LEARNING_RATE = 1e-12

_STOCK: dict[str, Any] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Way(Protocol):
    """A model with its optimizer and a batch."""

    device: torch.device
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer

    def take_batch(self, length: int) -> None:
        """Make a batch of sequences of this length the one that is used from here on."""

    def compute_gradients(self) -> None:
        """Go forward and backward."""

    def step(self) -> None:
        """Take a whole step: forward, backward, clipping, optimizer."""


def way_of(case: Case) -> Way:
    """Return the model, the optimizer and the batch of a case. Raises: MachineError."""
    way: Way = _Own(case) if case.implementation == "rnncls" else _Stock(case)
    return way


class _Own:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.task = task_of(case, case.length)
        self.state = new_state(self.task)
        self.device = self.state.device
        self.parameters = list(self.state.model.parameters())
        self.optimizer = self.state.optimizer

    def take_batch(self, length: int) -> None:
        self.batch = batch_of(self.case, length, self.device)

    def compute_gradients(self) -> None:
        keys = draw_keys(self.state, self.task.config)
        gradients_of_batch(self.state.model, self.batch, self.task, keys)

    def step(self) -> None:
        train_step(self.state, self.batch, self.task)


class StockClassifier(nn.Module):
    """The classifier of textbooks: embedding, a module of torch.nn, a linear head."""

    def __init__(self, config: Config, sizes: tuple[int, int]) -> None:
        super().__init__()
        model = config.model
        num_tokens, num_classes = sizes
        options: dict[str, Any] = {
            "num_layers": model.num_layers,
            "bias": model.bias,
            "dropout": model.dropout,
            "bidirectional": model.bidirectional,
        }
        if model.cell == "rnn":
            options["nonlinearity"] = model.nonlinearity
        self.embedding = nn.Embedding(num_tokens, model.embedding_dim)
        self.rnn = _STOCK[model.cell](model.embedding_dim, model.hidden_size, **options)
        self.num_directions = 2 if model.bidirectional else 1
        self.head = nn.Linear(model.hidden_size * self.num_directions, num_classes)

    def forward(self, tokens: PackedSequence) -> Tensor:
        """Return the logits, (B, num_classes)."""
        _, hidden = self.rnn(tokens._replace(data=self.embedding(tokens.data)))
        if isinstance(hidden, tuple):  # that of the LSTM, with its cell state
            hidden, _ = hidden
        # The final states of the last layer, (num_directions, B, hidden_size).
        last = hidden[-self.num_directions :].transpose(0, 1).flatten(1)
        logits: Tensor = self.head(last)
        return logits


class _Stock:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.device = prepare_device(case.config)
        self.model = StockClassifier(case.config, case.sizes).to(self.device)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.parameters, _still(case.config).optimizer)

    def take_batch(self, length: int) -> None:
        batch = next(task_of(self.case, length).batches(0, 1))
        self.batch = batch.to(self.device)

    def compute_gradients(self) -> None:
        self._go_back()

    def _go_back(self) -> Tensor:
        """Go forward and backward; returns the loss."""
        with precision(self.case.config, self.device):
            logits = self.model(self.batch.tokens).float()
        loss = F.cross_entropy(logits, self.batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self) -> None:
        self.optimizer.zero_grad()
        loss = self._go_back()
        max_norm = self.case.config.train.max_grad_norm
        if max_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, max_norm)
        self.optimizer.step()
        # The loss is read after each step, as in ours: it is logged.
        loss.item()


def task_of(case: Case, length: int) -> SumModTask:
    """Return a task without end whose sequences all have this length."""
    num_tokens, num_classes = case.sizes
    # Not validated: files may have one class, or more tokens than the generated task.
    data = SumModConfig.model_construct(
        modulus=num_classes,
        max_value=num_tokens - 1,
        min_length=length,
        max_length=length,
        layout=case.config.data.layout,
    )
    config = _still(case.config)
    return SumModTask(config.model_copy(update={"data": data}), data)


def _still(config: Config) -> Config:
    """Return the config with endless steps that change next to nothing."""
    train = {"max_steps": ENDLESS, "max_skipped_steps": MOST_SKIPPED}
    schedule = ScheduleConfig(name="constant", warmup_steps=0)
    return config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"lr": LEARNING_RATE}),
            "schedule": schedule,
            "train": config.train.model_copy(update=train),
        }
    )


def batch_of(case: Case, length: int, device: torch.device) -> Batch | PaddedBatch:
    """Return a training batch of sequences of this length, laid out as eager steps want it."""
    task = task_of(case, length)
    if layout_of(task, device) == "padded":
        block = next(task.blocks(0, 1))
        return block.padded(0).to(device)
    return next(task.batches(0, 1)).to(device)
