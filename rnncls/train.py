"""The training loop: `fit` takes steps, `train_step` is one of them, `after_step` does what is due after it."""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from rnncls.checkpoint import mark_best, prune, write_checkpoint
from rnncls.config import Config
from rnncls.data import Batch, batches, samples
from rnncls.device import describe, resolve_device
from rnncls.errors import NonFiniteError, Problem
from rnncls.evaluation import count_by_length, score
from rnncls.metrics import Totals
from rnncls.model import RNNClassifier, build_model
from rnncls.optim import build_optimizer, clip_grad_norm, learning_rate
from rnncls.runlog import RunLog, logged_lengths
from rnncls.seeds import mix


@dataclass
class TrainState:
    """All that changes during a run. The rest is a function of config and step."""

    model: RNNClassifier
    optimizer: torch.optim.Optimizer
    step: int = 0  # optimizer steps done
    totals: Totals = field(default_factory=Totals)  # since the last log line
    best_step: int | None = None
    best_accuracy: float = -math.inf
    stale_evaluations: int = 0  # in a row, without a higher accuracy

    def counters(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps beside weights, optimizer state and step."""
        best = None if self.best_step is None else self.best_accuracy
        counters = {"best_step": self.best_step, "best_accuracy": best, "stale_evaluations": self.stale_evaluations}
        return counters | {f"totals_{name}": value for name, value in asdict(self.totals).items()}


def fit(config: Config, run_dir: str | Path) -> TrainState:
    """Train `config` from scratch, writing everything into `run_dir`, which must be new or empty.

    Raises MachineError without the device, ConfigError for a used directory, NonFiniteError, WriteError.
    """
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    device = resolve_device(config.device)
    model = build_model(config).to(device)
    state = TrainState(model, build_optimizer(model.parameters(), config.optimizer))
    with RunLog(Path(run_dir), config) as log:
        log.say(f"training on {describe(device)}")
        if config.train.max_steps == 0:
            after_step(state, config, log)
        started_at = time.perf_counter()
        for batch in batches(
            config.data, config.seed, "train", config.train.batch_size, state.step, config.train.max_steps
        ):
            train_step(state, batch.to(device), config)
            log.bar.update()
            state.totals.seconds += time.perf_counter() - started_at
            if after_step(state, config, log):
                break
            started_at = time.perf_counter()
    return state


def train_step(state: TrainState, batch: Batch, config: Config) -> None:
    """One optimizer step on one batch, added to `state.totals`.

    Raises NonFiniteError before the optimizer could spread a NaN. For that it reads loss and norm once per step.
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
    if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
        raise _non_finite(state.step + 1, loss_value, norm_value, lr)
    state.optimizer.step()
    state.step += 1
    state.totals.add(loss_value, norm_value, int(correct_value), len(batch.labels), config.train.max_grad_norm)


def after_step(state: TrainState, config: Config, log: RunLog) -> bool:
    """Evaluate, log and save, whatever is due after this step. Returns whether the run is over."""
    train, step = config.train, state.step
    over = step >= train.max_steps
    scalars: dict[str, float] = {}
    is_best = False
    if over or step % train.eval_every == 0:
        scalars = validate(state.model, config)
        is_best = note_accuracy(state, scalars)
        over = over or _may_stop(state, config, scalars["val/accuracy"], log)
    if over or step % train.log_every == 0:
        rates = {"train/lr": state.optimizer.param_groups[0]["lr"]} if state.totals.steps else {}
        scalars = state.totals.averages() | rates | scalars
        state.totals = Totals()
    if scalars:
        log.log(step, scalars)
    if train.histogram_every and step % train.histogram_every == 0:
        log.histograms(step, state.model)
    if over or is_best or step % train.checkpoint_every == 0:
        path = write_checkpoint(log.checkpoints, state.model, state.optimizer, config, step, state.counters())
        if is_best:
            mark_best(path)
        prune(log.checkpoints, train.keep_checkpoints)
    return over


def validate(model: RNNClassifier, config: Config) -> dict[str, float]:
    """Loss and accuracy on the validation stream, overall and by length, by TensorBoard tag."""
    scores = score(model, samples(config.data, config.seed, "val", config.train.eval_samples))
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


def _non_finite(step: int, loss: float, norm: float, lr: float) -> NonFiniteError:
    return NonFiniteError(
        Problem(
            f"the loss or the gradient is not finite at step {step}",
            expected="finite numbers; the weights are those of the step before",
            found=f"loss {loss}, gradient norm {norm}, learning rate {lr:.3g}",
            remedy="a smaller optimizer.lr, a longer schedule.warmup_steps, or train.max_grad_norm=1",
            id="R12",
        )
    )
