"""One member of a sweep: train it as far as it is not trained, then evaluate it."""

from pathlib import Path

from rnncls.errors import ConfigError, MachineError, NonFiniteError, Problem
from rnncls.rundir.checkpoint_files import step_files
from rnncls.rundir.lock import is_locked
from rnncls.rundir.paths import CHECKPOINTS
from rnncls.rundir.status import read_status
from rnncls.sweep.paths import MEMBERS
from rnncls.sweep.plan import Member, Sweep
from rnncls.sweep.results import (
    evaluate_member,
    read_evaluation,
    trained_accuracy,
    write_evaluation,
)
from rnncls.system.folders import refuse_links
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.run import Shared


class InUse(MachineError):
    """Another process trains this member."""


def run_member(sweep: Sweep, member: Member, shared: Shared) -> bool:
    """Train and evaluate a member as far as that is not done; return whether it solves the task.

    Solved means every sequence of the training lengths is right.
    """
    run_dir = sweep.run_dir(member)

    # The thread may have been waiting for its turn when the signal came.
    shared.stop.check(0, str(run_dir))
    # Its folder is not one that the user has named.
    refuse_links(sweep.folder, f"{MEMBERS}/{member.name}")
    _train_member(member, run_dir, shared)

    # An evaluation of another step is out of date: the run was resumed with more steps since.
    evaluation = read_evaluation(run_dir)
    step = read_status(run_dir).get("step", 0)
    if evaluation is None or evaluation.step != step:
        report = evaluate_member(
            member,
            run_dir,
            None,
            sweep,
            check=lambda: shared.stop.check(step, str(run_dir)),
            search=shared.search,
        )
        evaluation = write_evaluation(run_dir, report)
    # Equality is safe: the mean of ones is computed as exactly 1.
    return trained_accuracy(evaluation, member.config) == 1


def _train_member(member: Member, run_dir: Path, shared: Shared) -> None:
    """Train a member from where it stands to its last step.

    Raises: InUse if another process trains it. NonFiniteError if it diverges, or has before.
    """
    status = read_status(run_dir)
    if status.get("exit_code") == NonFiniteError.exit_code:
        # It would diverge again, at the same step.
        what = "not finite, in an earlier call"
        error_id = status.get("error_id") or "R12"
        raise NonFiniteError(Problem(what, str(run_dir), id=error_id))

    try:
        if status.get("state") == "finished":
            # The bar counts the steps of all members, those of an earlier call too.
            shared.report_steps(member.config.train.max_steps)
        # With a checkpoint, even that of step 0, a new run would be refused as the folder is used.
        elif step_files(run_dir / CHECKPOINTS):
            resume(run_dir, shared=shared)
        else:
            fit(member.config, run_dir, shared=shared)
    except (ConfigError, MachineError) as error:
        # Another process may come first at any time up to the lock, and then the run directory is
        # in use, or no longer empty. Both are errors only if that process has gone.
        if is_locked(run_dir):
            raise InUse(*error.problems) from None
        raise
