"""Steps one at a time, in plain PyTorch: the reference that every other engine must equal."""

import math
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from rnncls.config import Config
from rnncls.data import Batch, PaddedBatch, Task
from rnncls.errors import NonFiniteError, Problem
from rnncls.model.dropout import Keys, dropout_keys
from rnncls.model.losses import sequence_losses
from rnncls.model.rules import LATEST, StepRules
from rnncls.seeds import mix
from rnncls.steps.objective import gradients_of_batch
from rnncls.steps.optim import clip_grad_norm, learning_rate
from rnncls.steps.state import TrainState

# A time step is small if its states, (B, H), are fewer numbers than this: calls then cost more than
# arithmetic. A small LSTM is padded on the CPU, and one of whose batches at least this share is
# tokens; of small nn.RNNs those whose longest sequence is short.
LARGE_STEP = 4096
WELL_FILLED = 2 / 3
SHORT = 5  # tokens

MOST_NAMED = 5  # sequences that an error message lists

# Of steps at the beginning, in which the learning rate may be too large for the first weights.
EARLY_STEPS = 100


def eager_steps(state: TrainState, task: Task) -> Generator[int, None, None]:
    """Train from the state's step to the task's last, and yield 1 after each step."""
    for batch in batches_of(state, task, task.max_steps):
        train_step(state, batch, task)
        yield 1


def batches_of(state: TrainState, task: Task, stop: int) -> Iterator[Batch | PaddedBatch]:
    """Yield the batches of the state's step to stop - 1 on its device, laid out as is fastest."""
    device = state.device
    # Both layouts have the same sequences in the same order, so that the losses agree.
    batches: Iterator[Batch | PaddedBatch] = task.batches(state.step, stop)
    if layout_of(task, device, state.step_rules) == "padded":
        batches = _padded_batches(task, state.step, stop)
    for batch in batches:
        yield batch.to(device)


def layout_of(task: Task, device: torch.device, step_rules: StepRules = LATEST) -> str:
    """Return how batches are laid out on this device: "packed" or "padded".

    `step_rules`: those of the run. docs/performance.md has the measurements behind the rule.
    """
    config = task.config
    # Prefix labels stand in the order of packed tokens, and pieces are cut from packed sequences.
    train = config.train
    if train.objective == "prefix" or train.recompute_every or train.truncate_after:
        return "packed"
    if config.data.layout != "auto":
        return config.data.layout

    # A padded batch in reverse would begin with its padding, so two directions need packed ones.
    model = config.model
    if model.bidirectional:
        return "packed"
    if device.type == "cuda":
        return "padded"

    # On the CPU, torch's padded LSTM is one call of oneDNN for each layer, but of all padding. The
    # padded nn.RNN is faster where little else is done than calling.
    is_small = train.batch_size * model.hidden_size < LARGE_STEP
    if train.precision == "bfloat16" or step_rules == 1:
        is_padded = False
    elif model.cell == "lstm":
        is_padded = is_small or task.filled >= WELL_FILLED
    else:
        is_padded = model.cell == "rnn" and is_small and task.longest <= SHORT
    return "padded" if is_padded else "packed"


def _padded_batches(task: Task, step: int, stop: int) -> Iterator[PaddedBatch]:
    """Yield the batches of the steps step, ..., stop - 1, each padded to its longest sequence."""
    for block in task.blocks(step, stop):
        for number in range(block.num_steps):
            yield block.padded(number)


def train_step(state: TrainState, batch: Batch | PaddedBatch, task: Task) -> None:
    """Take one optimizer step on one batch, and add it to `state.totals`.

    A loss or gradient that is not finite never reaches the weights: the update is left out. To know
    that, loss and norm are read from the device once per step.

    Raises: NonFiniteError after more than `train.max_skipped_steps` such steps in a row.
    """
    config = task.config

    lr = learning_rate(state.step, task.max_steps, config.optimizer.lr, config.schedule)
    (group,) = state.optimizer.param_groups
    group["lr"] = lr

    # Without a gradient from before, backward stores the new one instead of adding to it.
    for parameter in group["params"]:
        parameter.grad = None

    keys = draw_dropout(state, config)
    loss, logits = gradients_of_batch(state.model, batch, task, keys)
    # Truncated, no sequence of the batch may reach back to a learned initial state. The optimizer
    # is to see a gradient of 0 then, or it would have no state for that parameter.
    for parameter in group["params"]:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)

    norm = clip_grad_norm(group["params"], config.train.max_grad_norm)
    correct = (logits.argmax(1) == batch.labels).sum()

    # The three numbers are read together: each reading waits for the device.
    measured = torch.stack((loss, norm, correct.float()))  # (3,)
    loss_value, norm_value, correct_value = measured.tolist()
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)

    # Raised before the step is counted, so that the state is still that of the step before.
    if not finite and state.skipped >= config.train.max_skipped_steps:
        raise _non_finite(state.step + 1, loss_value, norm_value, lr, logits, batch.labels, config)

    # A skipped step counts as well: the next one has another batch, and a run has no more steps.
    state.step += 1
    state.due = True
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


def draw_dropout(state: TrainState, config: Config) -> Keys:
    """Return the keys of the next step's dropout, or seed torch's generator for it."""
    # Either way dropout is a function of seed and step, so that a resumed run has the same.
    if config.model.dropout == 0:
        return ()
    if state.step_rules == 1:
        torch.manual_seed(mix(config.seed, "dropout", state.step))
        return ()
    return dropout_keys(config.seed, state.step, config.model.num_layers)


def _non_finite(
    step: int,
    loss: float,
    norm: float,
    lr: float,
    logits: Tensor,
    labels: Tensor,
    config: Config,
) -> NonFiniteError:
    """Describe a step whose loss or gradient is not finite, with the sequences that are to blame.

    `logits`: (B, num_classes); `labels`: (B,).
    """
    # Without reduction each sequence has its own loss. There may be no culprit: a gradient can
    # overflow although every loss is finite.
    losses = sequence_losses(logits, labels)  # (B,)
    culprits = (~losses.isfinite()).nonzero().flatten().tolist()
    sequences = ""
    if culprits:
        numbers = ", ".join(map(str, culprits[:MOST_NAMED]))
        sequences = f", not finite for sequences {numbers} of the batch"

    return NonFiniteError(
        Problem(
            f"the loss or the gradient is not finite at step {step}",
            expected="finite numbers; the weights are those of the step before",
            found=f"loss {loss}, gradient norm {norm}, learning rate {lr:.3g}{sequences}",
            remedy=_remedies(step, config),
            id="R12",
        )
    )


def _remedies(step: int, config: Config) -> str:
    """Return what to change so that the numbers stay finite; each differs from what is set."""
    remedies = [f"optimizer.lr={config.optimizer.lr / 10:g}"]

    # A longer warm-up helps while the rate still rises, or right behind that.
    warmup = config.schedule.warmup_steps or 0
    if step <= 2 * warmup + EARLY_STEPS:
        remedies.append(f"schedule.warmup_steps={max(EARLY_STEPS, 2 * warmup)}")

    limit = config.train.max_grad_norm
    remedies.append(f"train.max_grad_norm={1 if limit is None or limit > 1 else limit / 10:g}")
    return ", or ".join(remedies)
