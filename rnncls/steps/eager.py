"""Steps one by one, in plain PyTorch: what every other way of taking steps must equal."""

import math
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.config import Config
from rnncls.data import Batch, PaddedBatch, Task
from rnncls.errors import NonFiniteError, Problem
from rnncls.model.losses import sequence_losses
from rnncls.seeds import mix
from rnncls.steps.optim import clip_grad_norm, learning_rate
from rnncls.steps.state import TrainState


def one_by_one(state: TrainState, task: Task) -> Generator[int, None, None]:
    """Train up to the task's last step; yields 1 after each."""
    device = next(state.model.parameters()).device
    batches: Iterator[Batch | PaddedBatch] = task.batches(state.step, task.max_steps)
    if layout_of(task.config, device) == "padded":
        batches = (
            block.padded(k)
            for block in task.blocks(state.step, task.max_steps)
            for k in range(block.num_steps)
        )
    for batch in batches:
        train_step(state, batch.to(device), task)
        yield 1


def layout_of(config: Config, device: torch.device) -> str:
    """How batches are laid out for this device: packed or padded."""
    if config.data.layout != "auto":
        return config.data.layout
    return "padded" if device.type == "cuda" and not config.model.bidirectional else "packed"


def train_step(state: TrainState, batch: Batch | PaddedBatch, task: Task) -> None:
    """One optimizer step on one batch, added to `state.totals`.

    A loss or gradient that is not finite never reaches the weights: the update is left out, and after more than
    `train.max_skipped_steps` in a row NonFiniteError is raised. For that, loss and norm are read once per step.
    """
    config = task.config
    if config.model.dropout > 0:
        torch.manual_seed(mix(config.seed, "dropout", state.step))
    lr = learning_rate(state.step, task.max_steps, config.optimizer.lr, config.schedule)
    (group,) = state.optimizer.param_groups
    group["lr"] = lr
    for parameter in group["params"]:
        parameter.grad = None
    with precision(config, batch.labels.device):
        logits = state.model(batch.tokens).float()  # (B, num_classes)
    weights = None if task.class_weights is None else task.class_weights.to(logits.device)
    loss = F.cross_entropy(logits, batch.labels, weights)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = clip_grad_norm(group["params"], config.train.max_grad_norm)
    correct = (logits.argmax(1) == batch.labels).sum()
    loss_value, norm_value, correct_value = torch.stack(
        (loss.detach(), norm, correct.float())
    ).tolist()
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)
    if not finite and state.skipped >= config.train.max_skipped_steps:
        raise _non_finite(state.step + 1, loss_value, norm_value, lr, logits.detach(), batch.labels)
    state.step, state.due = state.step + 1, True
    state.skipped = 0 if finite else state.skipped + 1
    if finite:
        state.optimizer.step()
        state.totals.add(
            loss_value,
            norm_value,
            int(correct_value),
            len(batch.labels),
            config.train.max_grad_norm,
        )


def precision(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """Products in bfloat16, or as they are."""
    return (
        torch.autocast(device.type, torch.bfloat16)
        if config.train.precision == "bfloat16"
        else nullcontext()
    )


def _non_finite(
    step: int, loss: float, norm: float, lr: float, logits: Tensor, labels: Tensor
) -> NonFiniteError:
    bad = (~sequence_losses(logits, labels).isfinite()).nonzero().flatten().tolist()
    rows = f", not finite for sequences {', '.join(map(str, bad[:5]))} of the batch" if bad else ""
    return NonFiniteError(
        Problem(
            f"the loss or the gradient is not finite at step {step}",
            expected="finite numbers; the weights are those of the step before",
            found=f"loss {loss}, gradient norm {norm}, learning rate {lr:.3g}{rows}",
            remedy="a smaller optimizer.lr, a longer schedule.warmup_steps, or train.max_grad_norm=1",
            id="R12",
        )
    )
