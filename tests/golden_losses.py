"""The first losses of a few configs, which show when a change moves numbers that it should not.

tests/golden/losses.json has those that were recorded. `make golden`, which is scripts/golden.py,
writes it; the tests train again and compare.
"""

import json
import tempfile
from pathlib import Path

import rnncls
from rnncls.system.signals import StopRequest
from rnncls.training.run import Shared
from tests.helpers import ROOT

GOLDEN = ROOT / "tests" / "golden" / "losses.json"
STEPS = 20

DROPOUT = [
    "model.cell=gru",
    "model.num_layers=2",
    "model.bidirectional=true",
    "model.dropout=0.3",
    "schedule.warmup_steps=5",
]

# Name of the case: config file, overrides.
GOLDEN_CASES = {
    "sum_mod_10_plain": ("configs/sum_mod_10_plain.yaml", ["schedule.warmup_steps=5"]),
    "tutorial_combined": ("configs/tutorial/combined.yaml", []),
    "deep_bidirectional": (
        "configs/parity.yaml",
        [
            "model.num_layers=2",
            "model.bidirectional=true",
            "model.nonlinearity=tanh",
            "optimizer.name=sgd",
        ],
    ),
    "prefix": (
        "configs/smoke.yaml",
        [
            "train.objective=prefix",
            "model.nonlinearity=tanh",
            "model.initial_state=learned",
            "schedule.warmup_steps=5",
        ],
    ),
    "gated_in_pieces": (
        "configs/parity.yaml",
        [
            "model.cell=gru",
            "model.num_layers=2",
            "model.bidirectional=true",
            "model.pooling=last_mean_max",
            "model.initial_state=learned",
            "train.recompute_every=2",
            "train.truncate_after=4",
            "schedule.warmup_steps=5",
        ],
    ),
    "dropout_by_generator": ("configs/parity.yaml", DROPOUT),
    "dropout_by_position": ("configs/parity.yaml", DROPOUT),
}


def golden_losses(case: str) -> list[float]:
    """Return the losses that were recorded for a case."""
    recorded: dict[str, list[float]] = json.loads(GOLDEN.read_text())
    return recorded[case]


def first_losses(case: str, engine: str = "eager") -> list[float]:
    """Train the first steps of a case on the CPU and return the training loss of each."""
    path, overrides = GOLDEN_CASES[case]
    short_run = [
        f"train.max_steps={STEPS}",
        "train.log_every=1",
        "train.eval_samples=10",
        "device=cpu",
        f"train.engine={engine}",
    ]
    config = rnncls.load_config(ROOT / path, [*overrides, *short_run])

    # As a member of a sweep that began before dropout was drawn by position.
    shared = None
    if case == "dropout_by_generator":
        shared = Shared(StopRequest(), report_steps=lambda _: None, step_rules=1)

    with tempfile.TemporaryDirectory() as folder:
        rnncls.fit(config, folder, shared=shared)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()

    return [json.loads(line)["train/loss"] for line in lines]
