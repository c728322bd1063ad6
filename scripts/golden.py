"""Record the first losses of a few configs, to show when a change moves numbers that it should not.

    make golden        rewrites tests/golden/losses.json; say in the commit why the losses moved

The tests call `first_losses` too and compare. Nothing else writes the file.
"""

import json
import tempfile
from pathlib import Path

import rnncls

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "losses.json"
STEPS = 20

# Name of the case: config file, overrides.
CASES = {
    "sum_mod_10": ("configs/sum_mod_10.yaml", ["schedule.warmup_steps=5"]),
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
}


def first_losses(case: str, engine: str = "eager") -> list[float]:
    """Train the first steps of a case on the CPU and return the training loss of each."""
    path, overrides = CASES[case]
    short_run = [
        f"train.max_steps={STEPS}",
        "train.log_every=1",
        "train.eval_samples=10",
        "device=cpu",
        f"train.engine={engine}",
    ]
    config = rnncls.load_config(ROOT / path, [*overrides, *short_run])

    with tempfile.TemporaryDirectory() as folder:
        rnncls.fit(config, folder)
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()

    return [json.loads(line)["train/loss"] for line in lines]


if __name__ == "__main__":
    losses = {case: first_losses(case) for case in CASES}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    print(f"wrote {GOLDEN}")
