"""Claim a directory for a run: a new one, or that of a run to be resumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnncls.errors import CheckpointError, ConfigError, MachineError, Problem
from rnncls.rundir.lock import locked
from rnncls.rundir.paths import CHECKPOINTS, FOLDERS, LOCK
from rnncls.rundir.run_directory import RunDirectory
from rnncls.rundir.status import read_status
from rnncls.system.files import TEMPORARY
from rnncls.system.folders import make_numbered, refuse_links
from rnncls.system.refusals import writing
from rnncls.system.streams import say


@contextmanager
def create_run(path: Path, numbered: bool = False) -> Iterator[RunDirectory]:
    """Make a new run directory and hold it for the duration.

    `numbered`: the name gets a number if it is taken.

    Raises: ConfigError if the directory is used already, and then touches nothing. WriteError if
    it cannot be made. MachineError while another process holds it. CheckpointError if one of its
    folders is a link.
    """
    if numbered:
        with writing(path):
            path = make_numbered(path)

    # Before the lock: making a lock file would already change a directory that is not ours.
    require_unused(path)
    with locked(path, make=True):
        # Another process may have come between the question and the lock.
        require_unused(path)
        yield RunDirectory(path)


@contextmanager
def reopen_run(path: Path) -> Iterator[RunDirectory]:
    """Hold the directory of a run that is to be resumed, for the duration.

    Raises: CheckpointError if there is no run in it, or if one of its folders is a link.
    MachineError while another process holds it. WriteError.
    """
    # Before it is asked whether they are there: of a link that leads nowhere the answer is no.
    refuse_links(path, *FOLDERS)
    if not (path / CHECKPOINTS).is_dir():
        names = sorted(child.name for child in path.glob("*"))
        raise CheckpointError(
            Problem(
                "nothing to resume",
                str(path),
                expected="a run directory, with checkpoints in checkpoints/",
                found=", ".join(names[:5]) or "nothing",
                id="K1",
            )
        )

    # Asked before the lock is taken: afterwards this process would count as a running owner.
    died = read_status(path).get("state") == "died"
    with locked(path):
        if died:
            say("the process ended without a final status (killed?)")
        yield RunDirectory(path, died=died)


def require_text(path: Path) -> None:
    """Raise MachineError if the name of a run directory cannot be printed."""
    # Python shows bytes that are not text in this locale as halves of surrogate pairs.
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        raise MachineError(
            Problem(
                "the name of the run directory is not text in this locale",
                ascii(str(path)),
                expected="UTF-8",
                remedy="another --run-dir, or a UTF-8 locale such as LANG=C.UTF-8",
                id="R30",
            )
        )


def require_unused(path: Path) -> None:
    """Raise unless a new run may use this directory.

    Raises: ConfigError if something is in it. CheckpointError if one of its folders is a link.
    MachineError if its name cannot be printed. WriteError if it cannot be looked at.
    """
    require_text(path)
    with writing(path):
        refuse_links(path, *FOLDERS)
        names: set[str] = set()
        if path.is_dir():
            names = {child.name for child in path.iterdir()}
        elif path.exists():
            names = {"a file"}

        # A killed process may leave its lock, an empty folder, and a file that it was writing.
        if names <= {LOCK, CHECKPOINTS}:
            files = (path / CHECKPOINTS).glob("*")
            names = {file.name for file in files if not file.name.startswith(TEMPORARY)}
    if names:
        raise ConfigError(
            Problem(
                "the run directory is not empty",
                str(path),
                remedy="another --run-dir, --resume for the run in it, or neither for a fresh one",
                id="C19",
            )
        )
