"""The files of a sweep, by name. Importing this does not import torch.

<sweep>/sweep.yaml       the config, the seeds, the grid, and how members are evaluated
<sweep>/members/<name>/  an ordinary run each, with evaluation.json once it has finished
<sweep>/summary.json     statistics of the members
<sweep>/summary.csv      one line per member
<sweep>/plots/           pictures
<sweep>/summary/         the same pictures, and tables, as a run of TensorBoard
"""

from pathlib import Path

from rnncls.system.folders import walk

SWEEP_FILE = "sweep.yaml"
MEMBERS = "members"
EVALUATION = "evaluation.json"  # in the run directory of a member
SUMMARY_JSON = "summary.json"
SUMMARY_CSV = "summary.csv"
PLOTS = "plots"
SUMMARY = "summary"
FOLDERS = (MEMBERS, PLOTS, SUMMARY)


def is_sweep(folder: Path) -> bool:
    """Return whether the folder holds a sweep; False for a folder that may not be looked into."""
    # `rnncls eval` then takes the path for that of a checkpoint, whose error names the reason.
    try:
        return (folder / SWEEP_FILE).is_file()
    except OSError:
        return False


def sweeps_below(folder: Path, shown: Path) -> list[str]:
    """Return the sweeps in a folder, as paths relative to `shown`: the same, or one above it."""
    closed: list[OSError] = []
    sweeps = []
    for path, _, files in walk(folder, closed):
        if SWEEP_FILE in files:
            sweeps.append(path.resolve().relative_to(shown.resolve()).as_posix())
    return sweeps
