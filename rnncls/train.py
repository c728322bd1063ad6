"""The training loop: `fit` has steps taken (see `steps`), `after_step` does what is due after them."""

import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from rnncls import rundir
from rnncls.checkpoint import fitting_weights, mark_best, prune, read_checkpoint, write_checkpoint
from rnncls.config import Config, TrainConfig
from rnncls.data import Batch, Task, load_task
from rnncls.device import describe, describe_precision, make_deterministic, resolve_device, set_precision
from rnncls.errors import Interrupted, NonFiniteError, Problem, RnnclsError, as_out_of_memory
from rnncls.evaluation import count_by_length, score
from rnncls.files import free_bytes, replace
from rnncls.metrics import Totals, class_counts
from rnncls.model import RNNClassifier, build_model
from rnncls.optim import build_optimizer, learning_rate
from rnncls.profiling import TRACE, traced
from rnncls.runlog import RunLog, prepare
from rnncls.signals import StopRequest, stop_requests
from rnncls.state import TrainState
from rnncls.steps import Engine, choose

CRASH_LOG = "crash.log"


@dataclass(frozen=True)
class Company:
    """What a run beside others in one process shares with them, instead of signals, lines and a bar of its own."""

    stop: StopRequest
    update: Callable[[int], object]  # is told how many steps were taken
    engine: Engine | None = None  # takes the steps of all of them at once
    compared: tuple[str, ...] = ()  # the keys they differ in


def fit(
    config: Config, run_dir: str | Path, init_from: str | Path | None = None, company: Company | None = None
) -> TrainState:
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
        try:
            save(state, task, run_dir)  # from here on the run can be resumed
        except NonFiniteError as error:
            note_status(run_dir, state, "failed", error.exit_code, error.problems[0].id)
            raise
        origin = f"began with the weights of {first.path}, step {first.state.step}" if first else ""
        prepare(run_dir, config, last_logged=-1, comment=origin)
        return run(state, task, run_dir, company)


def new_state(task: Task) -> TrainState:
    """A fresh model and optimizer on the config's device. Raises MachineError without it or the engine asked for."""
    config = task.config
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    if config.train.deterministic:
        make_deterministic()
    set_precision(config.train.precision)
    device = resolve_device(config.device)
    choose(config, device)  # raises what it has to raise before anything is written
    model = build_model(config, task.sizes).to(device)
    return TrainState(model, build_optimizer(model.parameters(), config.optimizer))


def run(state: TrainState, task: Task, run_dir: Path, company: Company | None = None) -> TrainState:
    """Train from the state's step on, in a directory this process owns; status.json says how it ended."""
    outcome, exit_code, error_id = "failed", 1, ""
    update, compared = (None, ()) if company is None else (company.update, company.compared)
    with stop_requests() if company is None else nullcontext(company.stop) as stop:
        note_status(run_dir, state, "running")
        try:
            logging = RunLog(run_dir, task, state.step, state.step - state.due, update, compared)
            with reporting_memory(task.config), logging as log:
                device = next(state.model.parameters()).device
                shared = None if company is None else company.engine
                _loop(state, task, log, stop, choose(task.config, device) if shared is None else (shared, "one stack"))
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


def _loop(state: TrainState, task: Task, log: RunLog, stop: StopRequest, engine: tuple[Engine, str]) -> None:
    device = next(state.model.parameters()).device
    take_steps, name = engine
    how = f"{describe(device)}, {describe_precision(task.config.train.precision, device)}, {name}"
    log.say(f"training on {how}" + (f", from step {state.step:,}" if state.step else ""))
    _warn_of_little_space(state, log)
    try:
        if state.due and after_step(state, task, log, stop):
            return
        stop.check(state.step, str(log.run_dir))
        with _tracing(state, task, log) as count, closing(take_steps(state, task)) as steps:
            started_at = time.perf_counter()
            for taken in steps:
                state.totals.seconds += time.perf_counter() - started_at
                log.advance(taken)
                count(taken)
                if after_step(state, task, log, stop):
                    return
                stop.check(state.step, str(log.run_dir))
                started_at = time.perf_counter()
    except Interrupted:
        save(state, task, log.run_dir)
        raise


def _tracing(state: TrainState, task: Task, log: RunLog) -> AbstractContextManager[Callable[[int], None]]:
    """With `train.profile` a trace of some steps; gives a function to be told of steps."""
    if not task.config.train.profile:
        return nullcontext(lambda _: None)
    return traced(log.run_dir, task.max_steps - state.step, lambda action: log.write(TRACE, action))


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
