"""The training loop: `fit` takes steps, `train_step` is one of them, `after_step` does what is due after it."""

import math
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from rnncls import rundir
from rnncls.checkpoint import fitting_weights, mark_best, prune, read_checkpoint, write_checkpoint
from rnncls.config import Config, TrainConfig
from rnncls.data import Batch, Task, load_task
from rnncls.device import describe, make_deterministic, resolve_device
from rnncls.errors import Interrupted, NonFiniteError, Problem, RnnclsError, as_out_of_memory
from rnncls.evaluation import count_by_length, score
from rnncls.files import free_bytes, replace
from rnncls.metrics import Totals, class_counts, sequence_losses
from rnncls.model import RNNClassifier, build_model
from rnncls.optim import build_optimizer, clip_grad_norm, learning_rate
from rnncls.runlog import RunLog, prepare
from rnncls.seeds import mix
from rnncls.signals import StopRequest, stop_requests

CRASH_LOG = "crash.log"


@dataclass
class TrainState:
    """All that changes during a run. The rest is a function of config and step."""

    model: RNNClassifier
    optimizer: torch.optim.Optimizer
    step: int = 0  # batches trained on
    due: bool = False  # whether `after_step` of this step is still to be done
    skipped: int = 0  # batches in a row whose update was left out because it was not finite
    totals: Totals = field(default_factory=Totals)  # since the last log line
    best_step: int | None = None
    best_score: float = -math.inf  # of `train.best_metric`, larger is better
    best_accuracy: float = -math.inf  # of the best step
    stale_evaluations: int = 0  # in a row, without a higher score
    stopped: bool = False  # whether the run is over, be it before its last step

    def counters(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps beside weights, optimizer state and step."""
        own: dict[str, float | int | None] = {
            "due": int(self.due),
            "skipped": self.skipped,
            "best_step": self.best_step,
            "best_score": None if self.best_step is None else self.best_score,
            "best_accuracy": None if self.best_step is None else self.best_accuracy,
            "stale_evaluations": self.stale_evaluations,
            "stopped": int(self.stopped),
        }
        return own | {f"totals_{name}": value for name, value in asdict(self.totals).items()}

    def restore_counters(self, counters: dict[str, Any]) -> None:
        """The inverse of `counters`, for a state whose step is set. Raises ValueError where they make no sense."""
        try:
            kept = Counters.model_validate(counters)
        except ValidationError as error:
            raise ValueError(", ".join(str(detail["loc"][0]) for detail in error.errors()[:5])) from None
        known = (kept.best_step is None, kept.best_score is None, kept.best_accuracy is None)
        if len(set(known)) > 1 or (kept.best_step or 0) > self.step:
            raise ValueError("best_step, best_score, best_accuracy")
        self.due, self.stopped = bool(kept.due), bool(kept.stopped)
        self.skipped, self.stale_evaluations = kept.skipped, kept.stale_evaluations
        self.best_step = kept.best_step
        self.best_score = -math.inf if kept.best_score is None else kept.best_score
        self.best_accuracy = -math.inf if kept.best_accuracy is None else kept.best_accuracy
        self.totals = Totals(**{name: getattr(kept, f"totals_{name}") for name in asdict(Totals())})


Number = Annotated[int, Field(ge=0, le=2**62)]
Sum = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Counters(BaseModel):
    """What `TrainState.counters` may be when it comes out of a file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    due: Literal[0, 1]
    stopped: Literal[0, 1]
    skipped: Number
    stale_evaluations: Number
    best_step: Number | None
    best_score: Annotated[float, Field(ge=-1e300, le=1)] | None
    best_accuracy: Annotated[float, Field(ge=0, le=1)] | None
    totals_loss: Sum
    totals_correct: Number
    totals_sequences: Number
    totals_grad_norm: Sum
    totals_clipped: Number
    totals_steps: Number
    totals_seconds: Sum


def fit(config: Config, run_dir: str | Path, init_from: str | Path | None = None) -> TrainState:
    """Train `config`, writing everything into `run_dir`, which must be new or empty.

    `init_from`: a checkpoint or run whose weights to start from instead of fresh ones; with files, also its vocabulary
    and labels. Raises MachineError without the device, ConfigError for a used directory, DataError, CheckpointError,
    NonFiniteError, WriteError, OutOfMemory, and Interrupted after a signal.
    """
    run_dir = Path(run_dir)
    rundir.require_unused(run_dir)  # before files are read
    first = None if init_from is None else read_checkpoint(init_from)
    with reporting_memory(config):
        task = load_task(config, first.vocabulary if first else None, progress=True)
        weights = None if first is None else fitting_weights(first, config, task.sizes)
        state = new_state(task)
    if weights is not None:
        state.model.load_state_dict(weights)
    state.due = task.max_steps == 0  # then the only evaluation is that of the first weights
    with rundir.created(run_dir):
        save(state, task, run_dir)  # from here on the run can be resumed
        origin = f"began with the weights of {first.path}, step {first.state.step}" if first else ""
        prepare(run_dir, config, last_logged=-1, comment=origin)
        return run(state, task, run_dir)


def new_state(task: Task) -> TrainState:
    """A fresh model and optimizer on the config's device. Raises MachineError without it."""
    config = task.config
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    if config.train.deterministic:
        make_deterministic()
    model = build_model(config, task.sizes).to(resolve_device(config.device))
    return TrainState(model, build_optimizer(model.parameters(), config.optimizer))


def run(state: TrainState, task: Task, run_dir: Path) -> TrainState:
    """Train from the state's step on, in a directory this process owns; status.json says how it ended."""
    outcome, exit_code, error_id = "failed", 1, ""
    with stop_requests() as stop:
        note_status(run_dir, state, "running")
        try:
            with reporting_memory(task.config), RunLog(run_dir, task, state.step, state.step - state.due) as log:
                _loop(state, task, log, stop)
            outcome, exit_code = "finished", 0
        except RnnclsError as error:
            outcome, exit_code = "interrupted" if isinstance(error, Interrupted) else "failed", error.exit_code
            error_id = error.problems[0].id
            raise
        except Exception as error:
            with suppress(OSError):
                replace(run_dir / CRASH_LOG, traceback.format_exc().encode())
                error.add_note(f"the traceback is in {run_dir / CRASH_LOG}")
            raise
        finally:
            with suppress(RnnclsError):  # on a full disk the first error is the one to hear about
                note_status(run_dir, state, outcome, exit_code, error_id)
    return state


@contextmanager
def reporting_memory(config: Config) -> Iterator[None]:
    """Turns what Python and torch raise without memory into OutOfMemory, which says how much was asked for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        limit = f" of up to {config.data.max_length:,} tokens" if config.data.max_length else ""
        found = f"batches of {config.train.batch_size:,} sequences{limit}"
        if memory := as_out_of_memory(error, found):
            raise memory from error
        raise


def note_status(
    run_dir: Path, state: TrainState, outcome: str, exit_code: int | None = None, error_id: str = ""
) -> None:
    """Write status.json. Raises WriteError."""
    best = state.counters()["best_accuracy"]
    rundir.write_status(
        run_dir, state=outcome, exit_code=exit_code, error_id=error_id, step=state.step, best_accuracy=best
    )


def _loop(state: TrainState, task: Task, log: RunLog, stop: StopRequest) -> None:
    device = next(state.model.parameters()).device
    log.say(f"training on {describe(device)}" + (f", from step {state.step:,}" if state.step else ""))
    _warn_of_little_space(state, log)
    try:
        if state.due and after_step(state, task, log, stop):
            return
        started_at = time.perf_counter()
        for batch in task.batches(state.step, task.max_steps):
            stop.check(state.step, str(log.run_dir))
            train_step(state, batch.to(device), task)
            log.bar.update()
            state.totals.seconds += time.perf_counter() - started_at
            if after_step(state, task, log, stop):
                return
            started_at = time.perf_counter()
    except Interrupted:
        save(state, task, log.run_dir)
        raise


def train_step(state: TrainState, batch: Batch, task: Task) -> None:
    """One optimizer step on one batch, added to `state.totals`.

    A loss or gradient that is not finite never reaches the weights: the update is left out, and after more than
    `train.max_skipped_steps` in a row NonFiniteError is raised. For that, loss and norm are read once per step.
    """
    config = task.config
    if config.model.dropout > 0:
        torch.manual_seed(mix(config.seed, "dropout", state.step))
    lr = learning_rate(state.step, task.max_steps, config.optimizer.lr, config.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    logits = state.model(batch.tokens)  # (B, num_classes)
    weights = None if task.class_weights is None else task.class_weights.to(logits.device)
    loss = F.cross_entropy(logits, batch.labels, weights)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = clip_grad_norm(state.model.parameters(), config.train.max_grad_norm)
    correct = (logits.argmax(1) == batch.labels).sum()
    loss_value, norm_value, correct_value = torch.stack((loss.detach(), norm, correct.float())).tolist()
    finite = math.isfinite(loss_value) and math.isfinite(norm_value)
    if not finite and state.skipped >= config.train.max_skipped_steps:
        raise _non_finite(state.step + 1, loss_value, norm_value, lr, logits.detach(), batch.labels)
    state.step, state.due = state.step + 1, True
    state.skipped = 0 if finite else state.skipped + 1
    if finite:
        state.optimizer.step()
        state.totals.add(loss_value, norm_value, int(correct_value), len(batch.labels), config.train.max_grad_norm)


def after_step(state: TrainState, task: Task, log: RunLog, stop: StopRequest) -> bool:
    """Evaluate, log and save, whatever is due after this step. Returns whether the run is over.

    A signal interrupts the evaluation; then all of it is still due.
    """
    train, step = task.config.train, state.step
    over = step >= task.max_steps
    scalars: dict[str, float] = {}
    is_best = False
    if over or step % train.eval_every == 0:
        scalars = validate(state.model, task, stop.checked(task.validation(), step, str(log.run_dir)))
        is_best = note_score(state, scalars, train.best_metric)
        over = over or _may_stop(state, train, scalars["val/accuracy"], log)
    if over or step % train.log_every == 0:
        config = task.config
        lr = learning_rate(step - 1, task.max_steps, config.optimizer.lr, config.schedule)
        rates = {"train/lr": lr} if state.totals.steps else {}
        scalars = state.totals.averages() | rates | scalars
        state.totals = Totals()
    if scalars:
        log.log(step, scalars)
    if train.histogram_every and step % train.histogram_every == 0:
        log.histograms(step, state.model)
    state.due = False
    if over or is_best or step % train.checkpoint_every == 0 or stop.save:
        state.stopped, stop.save = over, False
        path = save(state, task, log.run_dir)
        if is_best:
            mark_best(path)
        prune(path.parent, train.keep_checkpoints)
        note_status(log.run_dir, state, "running")
    return over


def save(state: TrainState, task: Task, run_dir: Path) -> Path:
    """Commit a checkpoint of this step. Raises WriteError, and NonFiniteError instead of committing such weights."""
    if not all(bool(parameter.isfinite().all()) for parameter in state.model.parameters()):
        found = f"after step {state.step}, whose loss and gradient were finite"
        remedy = "a smaller optimizer.lr; the checkpoints before are unharmed"
        raise NonFiniteError(Problem("the weights are not finite", str(run_dir), found=found, remedy=remedy, id="R12"))
    folder = run_dir / rundir.CHECKPOINTS
    return write_checkpoint(folder, state.model, state.optimizer, task, state.step, state.counters())


def validate(model: RNNClassifier, task: Task, validation: Iterable[Batch]) -> dict[str, float]:
    """Loss, accuracy and macro-F1 on the validation sequences, and accuracy by length, by TensorBoard tag."""
    scores = score(model, validation)
    by_length = count_by_length(scores)
    correct = (scores.predictions == scores.labels).double()
    counts = class_counts(scores.labels, scores.predictions, task.sizes[1])
    return {
        "val/loss": float(scores.losses.double().mean()),
        "val/accuracy": float(correct.mean()),
        "val/macro_f1": counts.macro_f1(),
        **{
            f"val/accuracy_by_length/{n}": 1 - by_length[n][1] / by_length[n][0]
            for n in task.logged_lengths()
            if n in by_length
        },
    }


def note_score(state: TrainState, scalars: dict[str, float], metric: str) -> bool:
    """Update the best so far; returns whether this step is the best.

    Of equal scores the latest is the best: once every sequence in range is right, it is further training that
    makes longer ones right too. Patience counts only strict improvements.
    """
    value = scalars[f"val/{metric}"] * (-1 if metric == "loss" else 1)
    score = value if math.isfinite(scalars["val/loss"]) else -math.inf
    state.stale_evaluations = 0 if score > state.best_score else state.stale_evaluations + 1
    if score < state.best_score or score == -math.inf:
        return False
    state.best_score, state.best_step, state.best_accuracy = score, state.step, scalars["val/accuracy"]
    return True


def _may_stop(state: TrainState, train: TrainConfig, accuracy: float, log: RunLog) -> bool:
    if train.stop_at_accuracy is not None and accuracy >= train.stop_at_accuracy:
        log.say(f"stopped at step {state.step:,}: val/accuracy {accuracy:.4f} reached train.stop_at_accuracy")
        return True
    if train.patience is not None and state.stale_evaluations >= train.patience:
        how = f"{state.stale_evaluations} evaluations without a better val/{train.best_metric}"
        log.say(f"stopped at step {state.step:,}: {how}")
        return True
    return False


def _warn_of_little_space(state: TrainState, log: RunLog) -> None:
    """A checkpoint and the one it replaces exist side by side for a moment, and best is a third."""
    size = 3 * sum(4 * parameter.numel() for parameter in state.model.parameters())  # weights and two moments
    if (free := free_bytes(log.run_dir)) < 3 * size:
        log.say(f"rnncls: warning[R9]: {free:,} bytes free; checkpoints of this run take about {size:,} bytes each")


def _non_finite(step: int, loss: float, norm: float, lr: float, logits: Tensor, labels: Tensor) -> NonFiniteError:
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
