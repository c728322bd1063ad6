"""Make the state of a run: a fresh one, or the one that a checkpoint holds."""

import torch

from rnncls.config import FilesConfig
from rnncls.data import Task
from rnncls.data.vectors import vectors_of
from rnncls.errors import CheckpointError, Problem
from rnncls.model.build import build_model
from rnncls.model.classifier import RNNClassifier
from rnncls.model.recurrence import PackedLayers
from rnncls.model.rules import LATEST, StepRules
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.restore import fitting_weights, is_finite, restore_optimizer
from rnncls.steps.average import average_of
from rnncls.steps.optim import build_optimizer, state_names
from rnncls.steps.state import TrainState
from rnncls.system.device import prepare_device
from rnncls.system.streams import say


def new_state(
    task: Task, source: Checkpoint | None = None, step_rules: StepRules = LATEST
) -> TrainState:
    """Return a fresh model and optimizer on the config's device.

    `source`: a checkpoint to take the weights from, or their average; then the file of
    `model.embeddings` is not read. `step_rules`: those of a new run, unless it belongs to a sweep
    that began by others.

    Raises: MachineError without the device. CheckpointError if the weights of `source` do not fit.
    DataError if the file of `model.embeddings` cannot be used.
    """
    config = task.config
    weights = None if source is None else fitting_weights(source, config, task.sizes)

    device = prepare_device(config)
    # Built on the CPU, so that a seed gives the same initial weights on every device.
    model = build_model(config, task.sizes)
    if weights is None:
        _begin_with_vectors(model, task)
    model.to(device)
    if isinstance(model.rnn, PackedLayers):
        model.rnn.as_before = step_rules == 1
    optimizer = build_optimizer(model.parameters(), config.optimizer)
    if weights is not None:
        model.load_state_dict(weights)

    average = None
    if config.train.average_weights is not None:
        average = average_of(model)

    # A run of no steps evaluates its first weights and is over.
    return TrainState(
        model,
        optimizer,
        average=average,
        due=task.max_steps == 0,
        best_metric=config.train.best_metric,
        step_rules=step_rules,
    )


@torch.no_grad()
def _begin_with_vectors(model: RNNClassifier, task: Task) -> None:
    """Give the tokens that the file of `model.embeddings` has its vectors, if there is one.

    Raises: DataError.
    """
    path = task.config.model.embeddings
    if path is None or task.vocabulary is None:
        return
    tokens = task.vocabulary.tokens
    width = task.config.model.embedding_dim
    vectors = vectors_of(path, tokens, width, task.token_counts)
    # After `init_gain`, which is for what is drawn.
    model.embedding.weight[vectors.found] = vectors.values[vectors.found]


def say_unread_vectors(task: Task) -> None:
    """Say that weights to begin with take the place of the vectors of `model.embeddings`."""
    path = task.config.model.embeddings
    if path is not None:
        say(f"{path} is not read: all weights are those of --init-from")


def warn_of_other_split(task: Task, source: Checkpoint) -> None:
    """Warn where the run that gives the weights has trained on rows that are held out now.

    Its files must be the same to the byte: only there is known which rows they have.
    """
    before = source.config.data
    now = task.config.data
    if not isinstance(before, FilesConfig) or not isinstance(now, FilesConfig):
        return
    if source.state.fingerprints.get("train") != task.fingerprints.get("train"):
        return

    kept = _rule_of_split(before)
    rule = _rule_of_split(now)
    if kept != rule and (rule["data.val_fraction"] or rule["data.test_fraction"]):
        keys = " ".join(f"{key}={value}" for key, value in kept.items() if rule[key] != value)
        what = "the weights were trained on other rows of the file, some of them held out now"
        say(f"rnncls: warning[D17]: {what} (as then: {keys})")


def _rule_of_split(data: FilesConfig) -> dict[str, str | float]:
    """Return by which keys rows are held out. A split with files of its own takes none."""
    return {
        "data.split": data.split,
        # Without rows that are dropped, sequences may belong to other classes.
        "data.rare_classes": "drop" if data.rare_classes == "drop" else "keep",
        "data.val_fraction": data.val_fraction if data.val is None else 0,
        "data.test_fraction": data.test_fraction if data.test is None else 0,
    }


def restored_state(checkpoint: Checkpoint, task: Task) -> TrainState:
    """Return the checkpoint's model, optimizer and counters, for training on `task`.

    Raises: CheckpointError if anything in it does not fit the task. MachineError.
    """
    state = new_state(task, checkpoint, checkpoint.state.step_rules)
    if not is_finite(checkpoint):
        raise CheckpointError(
            Problem(
                "the weights are not finite",
                str(checkpoint.path),
                remedy="rnncls train CONFIG --init-from with an earlier checkpoint file",
                id="K13",
            )
        )

    # The state has begun with the average of the weights, where there is one.
    if checkpoint.average:
        state.model.load_state_dict(checkpoint.model)
    optimizer_state = state_names(task.config.optimizer)
    restore_optimizer(checkpoint, state.model, state.optimizer, optimizer_state)

    # The step first: the counters are checked against it.
    state.step = checkpoint.state.step
    try:
        state.restore_counters(checkpoint.state.counters)
    except ValueError as error:
        raise CheckpointError(
            Problem(
                "the counters do not fit",
                str(checkpoint.path),
                found=str(error),
                remedy="--init-from, which takes the weights alone",
                id="K9",
            )
        ) from None
    return state
