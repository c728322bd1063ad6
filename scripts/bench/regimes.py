"""The sizes of model and batch that are measured, and their data."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rnncls.config import Config
from rnncls.config.load import parse_config
from rnncls.data import FilesTask, Task, load_task
from rnncls.data.sequences import epoch_order

N = 10  # the number of classes
LR = 1e-3
MOST_STEPS = 2**40
FOLDER = "RNNCLS_BENCH_FOLDER"  # the environment of all processes has where files are
CELLS = ("rnn", "gru", "lstm")
SEQUENCES = 20_000  # in the data set of a textbook, and in the file of a bucketed regime

# Gates, each with a W_ih and a W_hh.
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Regime:
    """A size of model and batch. Sequences are random, of lengths that are drawn uniformly."""

    batch_size: int
    hidden_size: int
    num_layers: int
    min_length: int
    max_length: int
    device: str = "cpu"
    embedding_dim: int = 10
    num_tokens: int = 10
    bucketed: bool = False  # batches of similar lengths, of a file
    cell: str = "rnn"
    directions: int = 1

    def config(self, engine: str, layout: str = "auto") -> Config:
        """Return the config with which rnncls trains this."""
        model: dict[str, Any] = {
            "cell": self.cell,
            "embedding_dim": self.embedding_dim,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.directions == 2,
            "recurrent_init": "default",
            "init_gain": 1.0,
        }
        if self.cell == "rnn":
            model["nonlinearity"] = "tanh"
        train: dict[str, Any] = {
            "batch_size": self.batch_size,
            "max_steps": MOST_STEPS,
            "engine": engine,
        }
        if self.bucketed:
            # Chunks of steps end where something is due: in a round all ways have these batches.
            train["log_every"] = self.steps_of_round

        sections: dict[str, Any] = {
            "data": {**self._data(), "layout": layout},
            "model": model,
            # As a textbook trains it: Adam at a constant rate.
            "optimizer": {"name": "adam", "lr": LR, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup_steps": 0, "min_lr": 0.0},
            "train": train,
            "device": self.device,
        }
        return parse_config(sections, "bench")

    def _data(self) -> dict[str, Any]:
        if not self.bucketed:
            return {"modulus": N, "min_length": self.min_length, "max_length": self.max_length}
        return {
            "source": "files",
            "train": str(file_of(self)),
            "tokens": "ids",
            "batching": "bucket",
            "val_fraction": 0.01,
            "test_fraction": 0.0,
        }

    def task(self, engine: str = "eager") -> Task:
        """Return the data with its config."""
        return load_task(self.config(engine))

    @property
    def steps_of_round(self) -> int | None:
        """How many steps make a round, where that is the same for all ways; else by the clock.

        Bucketed batches differ in their lengths: all ways are to have the same ones.
        """
        return 10 if self.bucketed else None

    def gigaflop(self) -> float:
        """Return the arithmetic of one step over real tokens, forward and backward.

        One direction of a layer with inputs of size I takes 6 G (S H I + (S - B) H^2) for S tokens
        of B sequences and G gates: the recurrent product is not needed for the first token of each.
        The head takes 6 B D H N with D directions.
        """
        h = self.hidden_size
        tokens = self.batch_size * (self.min_length + self.max_length) / 2
        later_tokens = tokens - self.batch_size

        flop = 6.0 * self.batch_size * self.directions * h * N
        for layer in range(self.num_layers):
            input_size = self.embedding_dim if layer == 0 else self.directions * h
            products = tokens * input_size + later_tokens * h
            flop += 6 * GATES[self.cell] * self.directions * h * products
        return flop / 1e9

    def described(self) -> str:
        """Return the sizes in a few words."""
        shape = f"B{self.batch_size} E{self.embedding_dim} H{self.hidden_size} L{self.num_layers}"
        bucketed = ", bucketed" if self.bucketed else ""
        return f"{shape}, lengths {self.min_length}-{self.max_length}{bucketed}"


REGIMES = {
    "tutorial": Regime(16, 16, 1, 2, 5),
    "tiny": Regime(64, 32, 3, 2, 5),
    "short": Regime(64, 128, 1, 2, 19, embedding_dim=32),
    "medium": Regime(256, 32, 3, 2, 50),
    "large": Regime(64, 256, 3, 20, 100),
    "text": Regime(64, 128, 1, 50, 300, embedding_dim=32, num_tokens=100, bucketed=True),
    "gpu-tiny": Regime(64, 32, 3, 2, 5, "cuda"),
    "gpu-small": Regime(256, 128, 2, 5, 50, "cuda"),
    "gpu-medium": Regime(256, 512, 2, 20, 200, "cuda"),
    "gpu-large": Regime(512, 1024, 2, 128, 512, "cuda"),
}


def regime_of(name: str, cell: str, directions: int = 1) -> Regime:
    """Return a regime by its name, with a cell that reads in one direction or in two."""
    return replace(REGIMES[name], cell=cell, directions=directions)


def file_of(regime: Regime) -> Path:
    """Return the file of a bucketed regime, in the folder that `FOLDER` names."""
    name = f"{regime.min_length}-{regime.max_length}-{regime.num_tokens}.jsonl"
    return Path(os.environ[FOLDER]) / name


def write_file(regime: Regime) -> None:
    """Write the file of a regime, if it has one."""
    if regime.bucketed:
        lengths = (regime.min_length, regime.max_length)
        write_sequences(file_of(regime), SEQUENCES, *lengths, regime.num_tokens)


def write_sequences(path: Path, count: int, shortest: int, longest: int, num_tokens: int) -> None:
    """Write random sequences of ids as JSON lines, each labelled with its sum modulo N."""
    rng = np.random.default_rng(0)
    lines = []
    for length in rng.integers(shortest, longest + 1, count).tolist():
        ids = rng.integers(0, num_tokens, length).tolist()
        lines.append(json.dumps({"sequence": ids, "label": sum(ids) % N}))
    path.write_text("\n".join(lines) + "\n")


def orders(task: Task) -> list[Tensor] | None:
    """Return the rows of each batch of the first epoch of a bucketed regime, else None."""
    if not isinstance(task, FilesTask):
        return None
    config = task.config
    return epoch_order(task.train, config.seed, 0, config.train.batch_size, task.data.batching)
