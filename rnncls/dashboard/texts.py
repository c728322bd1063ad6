"""The texts of a run in TensorBoard: what it is, what is special about it, what came out."""

import json
import shlex
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import text

from rnncls.config import Config, FilesConfig, SumModConfig, flatten, with_numbers
from rnncls.dashboard.markdown import block, table
from rnncls.dashboard.record import Evaluation
from rnncls.data import FilesTask, Task
from rnncls.errors import on_one_line
from rnncls.evaluation.report import make_report
from rnncls.evaluation.scores import Scores
from rnncls.rundir.checkpoint import versions
from rnncls.steps.state import TrainState
from rnncls.system.device import describe, describe_precision
from rnncls.system.distributed import world_size


def run_summary(state: TrainState, task: Task, engine: str) -> Summary:
    """Return what a run is: command, versions, data, model, device and engine."""
    config = task.config
    num_tokens, num_classes = task.sizes
    num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    precision = describe_precision(config.train.precision, state.device)
    # Another program has arguments of its own.
    is_command = Path(sys.argv[0]).stem in ("rnncls", "__main__")
    command = on_one_line(shlex.join(["rnncls", *sys.argv[1:]])) if is_command else "from Python"
    rows = [
        ("command", command),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
        ("data", f"{config.data.source}: {num_tokens:,} tokens, {num_classes:,} classes"),
        ("sequences", task.described_split or "generated"),
        ("model", f"{config.model.cell}, {num_parameters:,} parameters"),
        ("device", f"{describe(state.device)}, {precision}"),
        ("engine", engine),
        ("processes", str(world_size())),
        ("steps", f"{task.max_steps:,}"),
    ]
    return _text("run/summary", table(("", "this run"), rows))


def config_changes(task: Task) -> Summary:
    """Return the keys whose values are not the defaults."""
    now = flatten(task.config)
    default = flatten(_defaults(task))
    rows = []
    for key, value in now.items():
        if value != default[key]:
            rows.append((key, _as_written(value), _as_written(default[key])))
    if not rows:
        return _text("run/config_changes", "Every key has its default.")
    return _text("run/config_changes", table(("key", "this run", "default"), rows))


def _as_written(value: Any) -> str:
    """Return a value as it stands in a config."""
    return value if isinstance(value, str) else json.dumps(value)


def _defaults(task: Task) -> Config:
    """Return the config of the same data with the default in every other key."""
    data = task.config.data
    if not isinstance(data, FilesConfig):
        return Config()
    # What the file is called is no change; how it is read may be one.
    defaults = Config(data=FilesConfig(source="files", train=data.train))
    return with_numbers(defaults, task.max_steps, task.validation_sizes[1])


def worst_errors(evaluation: Evaluation) -> Summary:
    """Return the errors that the model is surest of."""
    if not evaluation.errors:
        return _text("val/worst_errors", "no errors")
    headings = ("sequence", "length", "true", "predicted", "p", "p(true)")
    rows: list[tuple[Any, ...]] = []
    for error in evaluation.errors:
        probability = f"{error.probability:.4f}"
        of_true = f"{error.probability_of_true:.4f}"
        names = (error.true, error.predicted)
        rows.append((error.sequence, f"{error.length:,}", *names, probability, of_true))
    return _text("val/worst_errors", table(headings, rows))


def final_report(
    state: TrainState, task: Task, scores: Scores, confidences: Tensor, names: list[str]
) -> Summary:
    """Return the report on the validation sequences after the last step.

    `confidences` (R,): the probabilities of the predicted classes. `names`: of the classes.
    """
    report = make_report(scores, confidences, tuple(names), _trained(task), (), False)
    best = "none"
    if state.best_value is not None:
        best = f"{state.best_value:.4f} at step {state.best_step:,}"
    head = f"after step {state.step:,}, on the validation sequences; "
    head += f"best val/{state.best_metric}: {best}"
    return _text("report/final", block(f"{head}\n\n{report.to_text()}"))


def _trained(task: Task) -> Container[int]:
    """Return the lengths that training has."""
    if isinstance(task, FilesTask):
        return frozenset(task.train.lengths.tolist())
    data = task.config.data
    return range(data.min_length, data.max_length + 1) if isinstance(data, SumModConfig) else ()


def _text(tag: str, markdown: str) -> Summary:
    return text(tag, markdown)  # type: ignore[no-untyped-call]
