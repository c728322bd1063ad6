"""How rnncls trains: what `rnncls train` does between two log lines."""

from dataclasses import dataclass

import torch

from rnncls.config import Config
from rnncls.data import load_task
from rnncls.steps.engines import choose, why_not
from rnncls.training.states import new_state
from scripts.bench.regimes import Regime
from scripts.bench.torch_ways import Run


@dataclass(frozen=True)
class Own:
    """One of the ways in which rnncls trains."""

    engine: str
    layout: str = "auto"
    threads: int = 1

    def config(self, regime: Regime, log_every: int | None = None) -> Config:
        """Return the config of this way."""
        config = regime.config(self.engine, self.layout)
        update = {"num_threads": self.threads}
        if log_every:
            update["log_every"] = log_every
        return config.model_copy(update={"train": config.train.model_copy(update=update)})

    def why_not(self, regime: Regime) -> str:
        """Return the reason why this way cannot train a regime; "" if it can."""
        if self.layout == "padded" and regime.directions == 2:
            return "a padded batch in reverse would begin with its padding"
        if self.engine in ("auto", "eager"):
            return ""
        return why_not(self.engine, self.config(regime), torch.device(regime.device))


OWN = {
    "rnncls auto": Own("auto"),
    "rnncls eager": Own("eager"),
    "rnncls packed": Own("eager", "packed"),
    "rnncls padded": Own("eager", "padded"),
    "rnncls compiled": Own("compiled"),
    "rnncls compiled 2": Own("compiled", threads=2),
    "rnncls captured": Own("captured"),
}


def steps_of(own: Own, regime: Regime) -> Run:
    """Return what takes the steps of a run."""
    task = load_task(own.config(regime))
    state = new_state(task)
    take_steps, _ = choose(task.config, state.device)
    taken = take_steps(state, task)

    def run(steps: int) -> int:
        done = 0
        while done < steps:
            done += next(taken)
        return done

    return run


def losses_of(own: Own, regime: Regime) -> list[float]:
    """Return the losses of the first five steps, taken one at a time."""
    task = load_task(own.config(regime, log_every=1))
    state = new_state(task)

    losses = []
    before = 0.0
    take_steps, _ = choose(task.config, state.device)
    for _, _ in zip(range(5), take_steps(state, task), strict=False):
        losses.append((state.totals.loss - before) / regime.batch_size)
        before = state.totals.loss
    return losses
