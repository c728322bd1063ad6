"""The n-gram control of a run, as a finished run beside its checkpoints."""

from rnncls.errors import CheckpointError, MachineError, Problem, on_one_line
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint, load_checkpoint
from rnncls.rundir.paths import CHECKPOINTS, CONTROL
from rnncls.rundir.status import read_status
from rnncls.system.folders import refuse_links
from rnncls.system.streams import say


def control_of(
    checkpoint: Checkpoint, device: str | None = None
) -> tuple[Checkpoint, RNNClassifier] | None:
    """Return the best checkpoint of the control of a checkpoint's run, with its model.

    None if the run has no control, and with one line on stderr if it is not finished, damaged or
    of other data. `device`: as for `load_checkpoint`.
    """
    folder = checkpoint.path.parent
    path = folder.parent / CONTROL
    if folder.name != CHECKPOINTS or not (path / CHECKPOINTS).is_dir():
        return None

    try:
        refuse_links(folder.parent, CONTROL, f"{CONTROL}/{CHECKPOINTS}")
        find_checkpoint(path)
        status = read_status(path)
        if status.get("state") != "finished":
            state = status.get("state", "without a status")
            what = f"it is {state}, not finished"
            raise CheckpointError(Problem(what, str(path), id="K25"))
        control, model = load_checkpoint(path, device)
        _require_same_data(checkpoint, control)
    except (CheckpointError, MachineError) as error:
        what = error.problems[0].what
        where = on_one_line(path)
        say(f"rnncls: warning[K25]: the report is without the n-gram control in {where}: {what}")
        return None
    return control, model


def _require_same_data(checkpoint: Checkpoint, control: Checkpoint) -> None:
    """Raise CheckpointError unless both were trained on the same data."""
    same = (
        checkpoint.vocabulary == control.vocabulary
        and checkpoint.sizes == control.sizes
        and checkpoint.state.fingerprints == control.state.fingerprints
    )
    if not same:
        what = "it was trained on other data"
        raise CheckpointError(Problem(what, str(control.path), id="K25"))
