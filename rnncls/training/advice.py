"""Says so when a run does not learn, and what to try: its loss is still that of guessing.

Guessing is to answer every sequence with the shares of the classes. It costs their entropy, which
is ln N for N classes of equal size.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.config import SumModConfig, number
from rnncls.data import Task
from rnncls.data.task import FilesTask
from rnncls.evaluation.metrics import entropy
from rnncls.evaluation.scores import score
from rnncls.steps.state import TrainState

# Within 1 % of guessing, nothing is learned yet. The default config is 4 % below it in step 200.
GUESSING = 0.99

# Fewer steps are a trial, and show nothing.
LEAST_STEPS = 50

# Where a run is looked at before its end: all that learn have left guessing long before that.
EARLY_SHARE = 0.25
EARLY_STEPS = 1000

# Generated sequences of up to this length are learned from nothing; longer ones only with shorter
# ones among them.
SHORT = 5

# Of the files' sequences. Half of them being longer than this, short ones are a help.
LONG = 30


# Up to it, sgd hardly moves the default config in 2,000 steps: 0.12 to 0.29 correct.
SMALL_SGD_RATE = 0.1

# The default config learns with a decay of 5, and not with one of 30.
MUCH_DECAY = 5


class Advice(NamedTuple):
    """A likely cause, and what to try."""

    cause: str
    remedy: str


def is_early_look(task: Task, step: int) -> bool:
    """Return whether this evaluation is the one before the end at which a run is looked at.

    It is the first one after a quarter of the run, 1,000 steps and twice the warm-up. A function of
    the step alone: a resumed run warns neither twice nor less often.
    """
    warmup = number(task.config.schedule.warmup_steps)
    # A warm-up that the run does not outlast is a cause to be named, and nothing to wait for.
    if warmup >= task.max_steps:
        warmup = 0
    after = max(EARLY_SHARE * task.max_steps, EARLY_STEPS, 2 * warmup)
    every = task.config.train.eval_every
    return step == math.ceil(after / every) * every


def warning_of_guessing(state: TrainState, task: Task, scalars: dict[str, float]) -> str:
    """Return a warning with causes and remedies if the model still guesses; else an empty text.

    `scalars`: the averages since the last log line and the evaluation of this step, by tag.
    """
    if state.step < LEAST_STEPS or not is_guessing(task, scalars):
        return ""

    loss = guessing_loss(task)
    shares = task.class_shares
    known_as = "the entropy of the class frequencies"
    if bool((shares == shares[0]).all()):
        known_as = f"ln {len(shares)}"

    lines = [
        f"rnncls: warning[T1]: the loss is still that of guessing ({loss:.4f} = {known_as}) "
        f"at step {state.step:,}"
    ]
    for advice in _advice(state, task, scalars):
        lines.append(f"  likely:   {advice.cause}")
        lines.append(f"  try:      {advice.remedy}")
    return "\n".join(lines)


def guessing_loss(task: Task) -> float:
    """Return the cross-entropy of guessing, in nats: the entropy of the training labels."""
    return entropy(task.class_shares)


def guessing_loss_of_training(task: Task) -> float:
    """Return what guessing costs in training, where the loss may ask for something else.

    That is the labels of prefixes, and classes that weigh more than others.
    """
    shares = task.trained_shares
    # Balanced weights make the classes that occur equally large.
    if task.class_weights is not None:
        return math.log(int((shares > 0).sum()))
    return entropy(shares)


def is_guessing(task: Task, scalars: dict[str, float]) -> bool:
    """Return whether the losses of training and validation are those of guessing, or higher.

    Both must be: a model that only remembers its training data is another trouble. Accuracy is not
    asked, because its luck is not that of the loss: after a warm-up that did not end, the sequences
    of a single token may be right, and nothing else.
    """
    loss = guessing_loss(task)
    # With a single class there is nothing to guess; a warning about that comes with the data.
    if loss == 0 or "train/loss" not in scalars:
        return False

    train_loss = guessing_loss_of_training(task)
    return scalars["train/loss"] >= GUESSING * train_loss and scalars["val/loss"] >= GUESSING * loss


def _advice(state: TrainState, task: Task, scalars: dict[str, float]) -> list[Advice]:
    """Return the causes that this run gives reason to suspect, and what to try; at least one."""
    found = [
        *_advice_on_schedule(state, task),
        *_advice_on_rate(task, scalars),
        *_advice_on_lengths(task),
    ]

    dead = share_of_dead_units(state, task)
    if dead >= 0.5:
        # With another cause they are its result, and another function would not help.
        rate = task.config.optimizer.lr
        remedy = f"optimizer.lr={rate / 10:g}, or model.nonlinearity=tanh"
        if found:
            remedy = "a new run: with more steps these units stay 0"
        what = f"dead ReLUs: {dead:.0%} of the hidden units are 0 for every validation sequence"
        found.append(Advice(what, remedy))

    if not found:
        rate = task.config.optimizer.lr
        remedy = f"optimizer.lr={rate / 10:g} or {rate * 10:g}, more steps, or easier data at first"
        found.append(Advice(f"none that shows; optimizer.lr is {rate:g}", remedy))
    return found


def _advice_on_schedule(state: TrainState, task: Task) -> Iterator[Advice]:
    warmup = number(task.config.schedule.warmup_steps)
    if state.step <= warmup:
        yield Advice(
            f"the warm-up of {warmup:,} steps is not over",
            f"schedule.warmup_steps={max(1, task.max_steps * 3 // 100)}",
        )


def _advice_on_rate(task: Task, scalars: dict[str, float]) -> Iterator[Advice]:
    optimizer = task.config.optimizer
    clipped = scalars["train/clip_fraction"]
    is_above = scalars["train/loss"] > 1.02 * guessing_loss_of_training(task)

    if clipped >= 0.9 or is_above:
        yield Advice(
            f"the steps are too large: {clipped:.0%} of the gradients were clipped, the training "
            f"loss is {scalars['train/loss']:.4f}",
            f"optimizer.lr={optimizer.lr / 10:g}",
        )
    elif optimizer.name == "sgd" and optimizer.lr < SMALL_SGD_RATE:
        yield Advice(
            f"a small learning rate for sgd, {optimizer.lr:g}",
            "optimizer.name=adamw optimizer.lr=1e-3",
        )
    elif optimizer.name != "sgd" and optimizer.lr < 1e-4:
        yield Advice(f"a small learning rate, {optimizer.lr:g}", "optimizer.lr=1e-3")

    # AdamW shrinks every weight by lr * weight_decay in each step.
    decay = number(optimizer.weight_decay)
    if decay > MUCH_DECAY:
        yield Advice(f"a weight decay of {decay:g}", "optimizer.weight_decay=0.01")


def _advice_on_lengths(task: Task) -> Iterator[Advice]:
    data = task.config.data
    if isinstance(data, SumModConfig):
        if data.min_length > 1 and data.max_length > 2:
            short = f"data.min_length=1 data.max_length={min(SHORT, data.max_length)}"
            yield Advice(
                f"no short sequences to begin with: lengths {data.min_length} to {data.max_length}",
                f"data.min_length=1; or first a run with {short}, then --init-from that run",
            )
        elif data.max_length > 2 * SHORT:
            yield Advice(
                f"few short sequences to begin with: lengths {data.min_length} to "
                f"{data.max_length}",
                f"first a run with data.max_length={SHORT}, then --init-from that run",
            )

    elif isinstance(task, FilesTask):
        median = int(task.train.lengths.median())
        if median > LONG:
            yield Advice(
                f"long sequences: half of them have {median:,} tokens or more",
                "model.cell=gru; or first a run on a file of the short ones, then --init-from it",
            )


def share_of_dead_units(state: TrainState, task: Task) -> float:
    """Return the share of the last layer's units that are 0 at the end of each sequence.

    None of them is where the units are not ReLUs.
    """
    model = task.config.model
    if model.cell != "rnn" or model.nonlinearity != "relu":
        return 0.0

    largest: list[Tensor] = []

    def note(_: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        (summary,) = inputs  # (B, num_directions * hidden_size)
        largest.append(summary.abs().amax(0))

    hook = state.model.head.register_forward_pre_hook(note)
    try:
        score(state.model, task.validation())
    finally:
        hook.remove()
    return float((torch.stack(largest).amax(0) == 0).double().mean())
