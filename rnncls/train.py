"""The training loop: `fit` takes steps, `train_step` is one of them, `after_step` does what is due after it."""

import math
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls import rundir
from rnncls.checkpoint import fitting_weights, mark_best, prune, read_checkpoint, write_checkpoint
from rnncls.config import Config
from rnncls.data import Batch, batches, samples
from rnncls.device import describe, make_deterministic, resolve_device
from rnncls.errors import Interrupted, NonFiniteError, Problem, RnnclsError, as_out_of_memory
from rnncls.evaluation import count_by_length, score
from rnncls.files import free_bytes, replace
from rnncls.metrics import Totals, sequence_losses
from rnncls.model import RNNClassifier, build_model
from rnncls.optim import build_optimizer, clip_grad_norm, learning_rate
from rnncls.runlog import RunLog, logged_lengths, prepare
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
    best_accuracy: float = -math.inf
    stale_evaluations: int = 0  # in a row, without a higher accuracy
    stopped: bool = False  # whether the run is over, be it before its last step

    def counters(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps beside weights, optimizer state and step."""
        own: dict[str, float | int | None] = {
            "due": int(self.due),
            "skipped": self.skipped,
            "best_step": self.best_step,
            "best_accuracy": None if self.best_step is None else self.best_accuracy,
            "stale_evaluations": self.stale_evaluations,
            "stopped": int(self.stopped),
        }
        return own | {f"totals_{name}": value for name, value in asdict(self.totals).items()}

    def restore_counters(self, counters: dict[str, Any]) -> None:
        """The inverse of `counters`. Raises KeyError or TypeError where one is missing, too many or of another kind."""
        if counters.keys() != self.counters().keys():
            raise KeyError
        self.due, self.stopped = bool(counters["due"]), bool(counters["stopped"])
        self.skipped, self.stale_evaluations = counters["skipped"], counters["stale_evaluations"]
        self.best_step = counters["best_step"]
        self.best_accuracy = -math.inf if counters["best_accuracy"] is None else counters["best_accuracy"]
        self.totals = Totals(**{name: counters[f"totals_{name}"] for name in asdict(Totals())})


def fit(config: Config, run_dir: str | Path, init_from: str | Path | None = None) -> TrainState:
    """Train `config`, writing everything into `run_dir`, which must be new or empty.

    `init_from`: a checkpoint or run whose weights to start from instead of fresh ones. Raises MachineError without the
    device, ConfigError for a used directory, CheckpointError, NonFiniteError, WriteError, OutOfMemory, and Interrupted
    after a signal.
    """
    weights = None if init_from is None else fitting_weights(read_checkpoint(init_from), config)
    state = new_state(config)
    if weights is not None:
        state.model.load_state_dict(weights)
    state.due = config.train.max_steps == 0  # then the only evaluation is that of the first weights
    run_dir = Path(run_dir)
    with rundir.created(run_dir):
        save(state, config, run_dir)  # from here on the run can be resumed
        prepare(run_dir, config, last_logged=-1)
        return run(state, config, run_dir)


def new_state(config: Config) -> TrainState:
    """A fresh model and optimizer on the config's device. Raises MachineError without it."""
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    if config.train.deterministic:
        make_deterministic()
    model = build_model(config).to(resolve_device(config.device))
    return TrainState(model, build_optimizer(model.parameters(), config.optimizer))


def run(state: TrainState, config: Config, run_dir: Path) -> TrainState:
    """Train from the state's step on, in a directory this process owns; status.json says how it ended."""
    outcome, exit_code, error_id = "failed", 1, ""
    with stop_requests() as stop:
        note_status(run_dir, state, "running")
        try:
            with reporting_memory(config), RunLog(run_dir, config, state.step) as log:
                _loop(state, config, log, stop)
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
        found = f"batches of {config.train.batch_size:,} sequences of up to {config.data.max_length:,} tokens"
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


def _loop(state: TrainState, config: Config, log: RunLog, stop: StopRequest) -> None:
    device = next(state.model.parameters()).device
    log.say(f"training on {describe(device)}" + (f", from step {state.step:,}" if state.step else ""))
    _warn_of_little_space(state, log)
    try:
        if state.due and after_step(state, config, log, stop):
            return
        started_at = time.perf_counter()
        train = config.train
        for batch in batches(config.data, config.seed, "train", train.batch_size, state.step, train.max_steps):
            stop.check(state.step, str(log.run_dir))
            train_step(state, batch.to(device), config)
            log.bar.update()
            state.totals.seconds += time.perf_counter() - started_at
            if after_step(state, config, log, stop):
                return
            started_at = time.perf_counter()
    except Interrupted:
        save(state, config, log.run_dir)
        raise


def train_step(state: TrainState, batch: Batch, config: Config) -> None:
    """One optimizer step on one batch, added to `state.totals`.

    A loss or gradient that is not finite never reaches the weights: the update is left out, and after more than
    `train.max_skipped_steps` in a row NonFiniteError is raised. For that, loss and norm are read once per step.
    """
    if config.model.dropout > 0:
        torch.manual_seed(mix(config.seed, "dropout", state.step))
    lr = learning_rate(state.step, config.train.max_steps, config.optimizer.lr, config.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    logits = state.model(batch.tokens)  # (B, num_classes)
    loss = F.cross_entropy(logits, batch.labels)
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


def after_step(state: TrainState, config: Config, log: RunLog, stop: StopRequest) -> bool:
    """Evaluate, log and save, whatever is due after this step. Returns whether the run is over.

    A signal interrupts the evaluation; then all of it is still due.
    """
    train, step = config.train, state.step
    over = step >= train.max_steps
    scalars: dict[str, float] = {}
    is_best = False
    if over or step % train.eval_every == 0:
        validation = samples(config.data, config.seed, "val", train.eval_samples)
        scalars = validate(state.model, config, stop.checked(validation, step, str(log.run_dir)))
        is_best = note_accuracy(state, scalars)
        over = over or _may_stop(state, config, scalars["val/accuracy"], log)
    if over or step % train.log_every == 0:
        lr = learning_rate(step - 1, train.max_steps, config.optimizer.lr, config.schedule)
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
        path = save(state, config, log.run_dir)
        if is_best:
            mark_best(path)
        prune(path.parent, train.keep_checkpoints)
        note_status(log.run_dir, state, "running")
    return over


def save(state: TrainState, config: Config, run_dir: Path) -> Path:
    """Commit a checkpoint of this step. Raises WriteError."""
    folder = run_dir / rundir.CHECKPOINTS
    return write_checkpoint(folder, state.model, state.optimizer, config, state.step, state.counters())


def validate(model: RNNClassifier, config: Config, validation: Iterable[Batch]) -> dict[str, float]:
    """Loss and accuracy on the validation stream, overall and by length, by TensorBoard tag."""
    scores = score(model, validation)
    by_length = count_by_length(scores)
    correct = (scores.predictions == scores.labels).double()
    return {
        "val/loss": float(scores.losses.double().mean()),
        "val/accuracy": float(correct.mean()),
        **{
            f"val/accuracy_by_length/{n}": 1 - by_length[n][1] / by_length[n][0]
            for n in logged_lengths(config)
            if n in by_length
        },
    }


def note_accuracy(state: TrainState, scalars: dict[str, float]) -> bool:
    """Update the best so far; returns whether this step is the best.

    Of equal accuracies the latest is the best: once every sequence in range is right, it is further training that
    makes longer ones right too. Patience counts only strict improvements.
    """
    accuracy = scalars["val/accuracy"] if math.isfinite(scalars["val/loss"]) else -math.inf
    state.stale_evaluations = 0 if accuracy > state.best_accuracy else state.stale_evaluations + 1
    if accuracy < state.best_accuracy or accuracy == -math.inf:
        return False
    state.best_accuracy, state.best_step = accuracy, state.step
    return True


def _may_stop(state: TrainState, config: Config, accuracy: float, log: RunLog) -> bool:
    train = config.train
    if train.stop_at_accuracy is not None and accuracy >= train.stop_at_accuracy:
        log.say(f"stopped at step {state.step:,}: val/accuracy {accuracy:.4f} reached train.stop_at_accuracy")
        return True
    if train.patience is not None and state.stale_evaluations >= train.patience:
        log.say(f"stopped at step {state.step:,}: {state.stale_evaluations} evaluations without a higher accuracy")
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
