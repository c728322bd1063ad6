"""Helpers that several test modules and scripts share."""

import json
from pathlib import Path
from typing import Any

from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest

Outcome = tuple[dict[str, bytes], list[dict[str, Any]], dict[str, Any]]


def outcome(run_dir: Path) -> Outcome:
    """Final tensors as bytes, logged lines and counters of the trajectory, without what depends on the clock."""
    checkpoint = read_checkpoint(find_newest(run_dir))
    tensors = {**checkpoint.model, **checkpoint.optim}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {key: value for key, value in line.items() if "per_second" not in key} for line in lines
    ]
    counters = {
        key: value for key, value in checkpoint.state.counters.items() if key != "totals_seconds"
    }
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, timeless, counters
