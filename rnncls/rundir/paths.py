"""What is called how in a run directory."""

from datetime import datetime
from itertools import chain, count
from pathlib import Path

BEST = "best.safetensors"


def step_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


LOCK = ".lock"
STATUS = "status.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"


def default_run_dir(config_path: Path, name: str = "") -> Path:
    """`runs/<config name>/<date_time>[-name]`, numbered if taken. A run's own config.yaml goes by that run's name."""
    is_run = config_path.name == "config.yaml" and (config_path.parent / "checkpoints").is_dir()
    stem = config_path.resolve().parent.parent.name if is_run else config_path.stem
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    wanted = Path("runs") / stem / (f"{time}-{name}" if name else time)
    others = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
    return next(path for path in chain([wanted], others) if not path.exists())
