"""The names of everything in a run directory, each spelled once.

.lock                        who owns the directory (lock.py)
config.yaml                  the resolved config: `rnncls train` with it repeats the run
status.json                  how the run stands (status.py)
metrics.jsonl, metrics.csv   one line per logged step, named like the TensorBoard tags (tables.py)
events.out.tfevents.*        TensorBoard: one event stream, HParams included (events.py)
checkpoints/                 step-N.safetensors and best.safetensors (checkpoint.py)
profile/                     how long the parts of a step take, and a trace, with train.profile
plots/                       pictures, and the evaluations that they are made of (rnncls/dashboard)
projector_config.pbtxt       tells TensorBoard's projector, which looks for this name, what there is
projector/                   vectors, and what each of them stands for (dashboard/projector.py)
control/                     the run of the n-gram control, with train.baseline=control
crash.log                    the traceback of an error that rnncls did not expect
"""

from datetime import datetime
from pathlib import Path

LOCK = ".lock"
CONFIG = "config.yaml"
STATUS = "status.json"
METRICS = "metrics.jsonl"
METRICS_TABLE = "metrics.csv"
EVENT_FILES = "events.out.tfevents.*"  # a glob pattern; TensorBoard chooses the names
CHECKPOINTS = "checkpoints"
BEST = "best.safetensors"
STEP_PREFIX = "step-"
STEP_FILES = f"{STEP_PREFIX}*.safetensors"  # a glob pattern for what `step_path` returns
PROFILE = "profile"
TRACE = f"{PROFILE}/steps.pt.trace.json"
PROFILE_TEXT = f"{PROFILE}/profile.txt"
CRASH_LOG = "crash.log"
PLOTS = "plots"
EVALUATIONS = f"{PLOTS}/evaluations.jsonl"
PROJECTOR = "projector"
PROJECTOR_CONFIG = "projector_config.pbtxt"
CONTROL = "control"
FOLDERS = (CHECKPOINTS, PROFILE, PLOTS, PROJECTOR, CONTROL)


def step_path(folder: Path, step: int) -> Path:
    """Return the checkpoint file of a step in the folder of checkpoints."""
    # Eight digits, so that names sort like numbers up to step 99,999,999 in any listing.
    return folder / f"{STEP_PREFIX}{step:08d}.safetensors"


def run_of_control(path: Path) -> Path | None:
    """Return the run whose n-gram control is in this folder; None if it is none."""
    # The path may be a dot.
    path = path.absolute()
    return path.parent if path.name == CONTROL and (path.parent / CHECKPOINTS).is_dir() else None


def default_run_dir(config_path: Path, name: str = "") -> Path:
    """Return `runs/<config name>/<date_time>[-name]`, which may be taken: see `make_numbered`.

    A run's own config.yaml counts as the config that the run was started with.
    """
    config_name = config_path.stem
    if config_path.name == CONFIG and (config_path.parent / CHECKPOINTS).is_dir():
        config_name = config_path.resolve().parent.parent.name
    # A config may be called `...yaml`, and `..` would lead out of the folder.
    if config_name in (".", ".."):
        config_name = ""

    # Local time, for people who look for a run of this morning.
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path("runs") / config_name / (f"{time}-{name}" if name else time)
