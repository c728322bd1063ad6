"""Draw a sweep: plots/*.png, and the run `summary` of TensorBoard with the same and the tables."""

from pathlib import Path

from rnncls.rundir.events import image_of, log_images
from rnncls.rundir.paths import EVENT_FILES
from rnncls.sweep.paths import PLOTS, SUMMARY
from rnncls.sweep.plan import Sweep
from rnncls.sweep.plots.by_length import accuracy_by_length, error_rate_by_length
from rnncls.sweep.plots.grid import grid_map
from rnncls.sweep.plots.loss import losses
from rnncls.sweep.plots.steps_to_solved import steps_to_solved
from rnncls.sweep.plots.success_rate import success_rates
from rnncls.sweep.summary import Summary
from rnncls.sweep.tables import summary_markdown
from rnncls.system.files import open_regular, write_atomically
from rnncls.system.pictures import default_style, rendered
from rnncls.system.refusals import writing

# The group of all tags. Time Series opens the first two groups by name, which are to be `train` and
# `val`: this one comes behind them.
GROUP = "whole_sweep"

# Earlier versions wrote their pictures into the sweep's own folder, with this tag first.
_EARLIER_TAG = b"sweep/accuracy_by_length"
_EARLIER_BYTES = 4096


@default_style()
def draw(sweep: Sweep, summary: Summary) -> list[Path]:
    """Write plots/*.png and log them for TensorBoard, for a process that holds the folder.

    Nothing is drawn until a member has been evaluated. Raises: WriteError.
    """
    ended = [outcome for outcome in summary.outcomes if outcome.ended]
    if not any(outcome.evaluation for outcome in ended):
        return []

    figures = {
        "success_rate": success_rates(ended),
        "steps_to_solved": steps_to_solved(ended),
        "grid": grid_map(summary.outcomes),
        "accuracy_by_length": accuracy_by_length(ended),
        "error_rate_by_length": error_rate_by_length(ended),
        "loss": losses(sweep, ended),
    }
    folder = sweep.folder / PLOTS
    paths = []
    images = []
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            if figure is None:
                continue
            path = folder / f"{name}.png"
            png, height, width = rendered(figure)
            write_atomically(path, png)
            paths.append(path)
            images.append(image_of(f"{GROUP}/{name}", png, height, width))

    shown = sweep.folder / SUMMARY
    with writing(shown):
        shown.mkdir(exist_ok=True)
        texts = {f"{GROUP}/tables": summary_markdown(summary)}
        log_images(shown, images, texts, step=len(ended))
        _remove_earlier(sweep.folder)
    return paths


def _remove_earlier(folder: Path) -> None:
    """Remove the event files of earlier versions from the sweep's own folder. Raises: OSError."""
    for path in folder.glob(EVENT_FILES):
        # A link, a pipe, or somebody else's events: no concern of ours.
        try:
            with open(open_regular(path), "rb") as file:
                is_ours = _EARLIER_TAG in file.read(_EARLIER_BYTES)
        except OSError:
            continue
        if is_ours:
            path.unlink()
