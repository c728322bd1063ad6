"""Steps one at a time, in plain PyTorch: the reference that every other engine must equal."""

import math
from collections.abc import Generator, Iterator
from itertools import chain

import torch
from torch import Tensor

from rnncls.config import Config
from rnncls.data import Batch, PaddedBatch, Task
from rnncls.errors import NonFiniteError, Problem
from rnncls.model.dropout import NO_KEYS, Keys, dropout_keys, input_keys
from rnncls.model.losses import sequence_losses
from rnncls.model.noise import noise_keys
from rnncls.model.rules import LATEST, StepRules
from rnncls.seeds import mix
from rnncls.steps.average import move_average
from rnncls.steps.objective import gradients_of_batch, weight_of
from rnncls.steps.optim import clip_grad_norm, learning_rate
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World

# A time step is small if its states, (B, H), are fewer numbers than this: calls then cost more than
# arithmetic. A small LSTM is padded on the CPU, and one of whose batches at least this share is
# tokens; of small nn.RNNs those whose longest sequence is short.
LARGE_STEP = 4096
WELL_FILLED = 2 / 3
SHORT = 5  # tokens

MOST_NAMED = 5  # sequences that an error message lists

# Of steps at the beginning, in which the learning rate may be too large for the first weights.
EARLY_STEPS = 100


def eager_steps(
    state: TrainState, task: Task, world: World | None = None
) -> Generator[int, None, None]:
    """Train from the state's step to the task's last, and yield 1 after each step."""
    for batch in _drawn(state, task, task.max_steps):
        train_step(state, batch, task, world)
        yield 1


def batches_of(state: TrainState, task: Task, stop: int) -> Iterator[Batch | PaddedBatch]:
    """Yield the batches of the state's step to stop - 1 on its device, laid out as is fastest."""
    for batch in _drawn(state, task, stop):
        yield batch.to(state.device)


def _drawn(state: TrainState, task: Task, stop: int) -> Iterator[Batch | PaddedBatch]:
    """Yield the same batches on the CPU, where they are drawn."""
    # Both layouts have the same sequences in the same order, so that the losses agree.
    batches: Iterator[Batch | PaddedBatch] = task.batches(state.step, stop)
    if layout_of(task, state.device, state.step_rules) == "padded":
        batches = _padded_batches(task, state.step, stop)
    return batches


def layout_of(task: Task, device: torch.device, step_rules: StepRules = LATEST) -> str:
    """Return how batches are laid out on this device: "packed" or "padded".

    `step_rules`: those of the run. docs/performance.md has the measurements behind the rule.
    """
    config = task.config
    # Prefix labels stand in the order of packed tokens, and pieces are cut from packed sequences.
    train = config.train
    if train.objective == "prefix" or train.recompute_every or train.truncate_after:
        return "packed"
    # Only our packed functions know noise on states.
    if config.model.state_noise > 0 and config.model.cell != "none":
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


def train_step(
    state: TrainState, batch: Batch | PaddedBatch, task: Task, world: World | None = None
) -> None:
    """Take one optimizer step on one batch, and add it to `state.totals`.

    With other processes, in `world`, each computes the gradients of its share of the batch, which
    must be on the CPU, and all take the step together.

    A loss or gradient that is not finite never reaches the weights: the update is left out. To know
    that, loss and norm are read from the device once per step.

    Raises: NonFiniteError after more than `train.max_skipped_steps` such steps in a row. PeerError.
    """
    config = task.config

    lr = learning_rate(state.step, task.max_steps, config.optimizer.lr, config.schedule)
    (group,) = state.optimizer.param_groups
    group["lr"] = lr

    # Without a gradient from before, backward stores the new one instead of adding to it.
    for parameter in group["params"]:
        parameter.grad = None

    keys = draw_keys(state, config)
    if world is None:
        batch = batch.to(state.device)
        labels = batch.labels
        loss, logits = gradients_of_batch(state.model, batch, task, keys)
    else:
        loss, logits, labels = _gradients_of_share(state, batch, task, keys, world)
    # Truncated, no sequence of the batch may reach back to a learned initial state. The optimizer
    # is to see a gradient of 0 then, or it would have no state for that parameter.
    for parameter in group["params"]:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)

    correct = (logits.argmax(1) == labels).sum()
    if world is not None:
        gradients = [parameter.grad for parameter in group["params"]]
        loss, correct = world.reduce(gradients, loss, correct)
    norm = clip_grad_norm(group["params"], config.train.max_grad_norm)

    # The three numbers are read together: each reading waits for the device.
    measured = torch.stack((loss, norm, correct.float()))  # (3,)
    loss_value, norm_value, correct_value = measured.tolist()
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)

    # Raised before the step is counted, so that the state is still that of the step before.
    if not finite and state.skipped >= config.train.max_skipped_steps:
        culprits = _culprits(logits, labels, world)
        raise _non_finite(state.step + 1, loss_value, norm_value, lr, culprits, config)

    # A skipped step counts as well: the next one has another batch, and a run has no more steps.
    state.step += 1
    state.due = True
    state.skipped = 0 if finite else state.skipped + 1
    if finite:
        state.optimizer.step()
        if state.average is not None and config.train.average_weights is not None:
            state.averaged += 1
            move_average(state.average, state.model, config.train.average_weights, state.averaged)
        state.totals.add(
            loss_value,
            norm_value,
            int(correct_value),
            len(batch.labels),
            config.train.max_grad_norm,
        )


def _gradients_of_share(
    state: TrainState, batch: Batch | PaddedBatch, task: Task, keys: Keys, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the gradients of this process's share of a batch to those of the parameters.

    Returns its loss, logits and labels. The losses of all processes add up to that of the batch.
    """
    device = state.device
    share = batch.share(world.rank, world.size)
    if share is None:
        # A batch may have fewer sequences than there are processes.
        logits = torch.zeros(0, state.model.head.out_features, device=device)
        return torch.zeros((), device=device), logits, batch.labels[:0].to(device)

    share = share.to(device)
    total = weight_of(batch, task).to(device)
    keys = keys._replace(first_row=world.rank, row_step=world.size)
    loss, logits = gradients_of_batch(state.model, share, task, keys, total)
    return loss, logits, share.labels


def draw_keys(state: TrainState, config: Config) -> Keys:
    """Return the keys of the next step's dropout and noise, or seed torch's generator for dropout.

    Either way both are functions of seed and step, so that a resumed run has the same.
    """
    keys = NO_KEYS
    if config.model.dropout > 0 and state.step_rules == 1:
        torch.manual_seed(mix(config.seed, "dropout", state.step))
    elif config.model.dropout > 0:
        keys = Keys(dropout_keys(config.seed, state.step, config.model.num_layers))
    if max(state.model.input_dropout) > 0:
        keys = keys._replace(of_inputs=input_keys(config.seed, state.step))
    if config.model.state_noise > 0:
        num_units = config.model.num_layers * state.model.num_directions
        keys = keys._replace(of_states=noise_keys(config.seed, state.step, num_units))
    return keys


def _culprits(logits: Tensor, labels: Tensor, world: World | None) -> list[int]:
    """Return the rows of the batch whose own loss is not finite.

    `logits`: (B, num_classes); `labels`: (B,), of this process's share.
    """
    # Without reduction each sequence has its own loss. There may be no culprit: a gradient can
    # overflow although every loss is finite.
    losses = sequence_losses(logits, labels)  # (B,)
    rows: list[int] = (~losses.isfinite()).nonzero().flatten().tolist()
    if world is None:
        return rows
    rows = [world.rank + world.size * row for row in rows]
    return sorted(chain.from_iterable(world.gather(rows)))


def _non_finite(
    step: int,
    loss: float,
    norm: float,
    lr: float,
    culprits: list[int],
    config: Config,
) -> NonFiniteError:
    """Describe a step whose loss or gradient is not finite, with the rows that are to blame."""
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
