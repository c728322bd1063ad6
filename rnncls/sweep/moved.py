"""Where the data files of a sweep are now, if they or the sweep were moved."""

from dataclasses import replace

from rnncls.config import FilesConfig
from rnncls.data.files.places import as_in_config
from rnncls.data.files.search import Search
from rnncls.data.moved import Remedies, files_now, say_moved
from rnncls.data.read_tables import data_files
from rnncls.errors import CheckpointError, Problem
from rnncls.sweep.plan import Member, Sweep, planned_files

_REMEDIES = Remedies(
    missing="--data-dir FOLDER with it behind sweep --resume SWEEP",
    changed="the old file, --data-dir FOLDER with it, or a new sweep",
)


def with_files_of_sweep(sweep: Sweep, search: Search) -> Sweep:
    """Return the sweep with the paths where its data files are now, and say where they were found.

    Raises: CheckpointError if a file has changed since the sweep began. DataError if there is no
    such file any more.
    """
    _require_planned(sweep)
    now = files_now(sweep.fingerprints, search, "sweep", _REMEDIES)
    say_moved("data", sweep.fingerprints, now, search)
    if all(path == before for before, path in now.items()):
        return sweep

    members = [_with_paths(member, now) for member in sweep.members]
    fingerprints = {now[path]: hash for path, hash in sweep.fingerprints.items()}
    return replace(sweep, members=members, fingerprints=fingerprints)


def _require_planned(sweep: Sweep) -> None:
    """Raise CheckpointError if a member has a file that the sweep did not have when it began."""
    # A value of the grid may be a folder or a pattern, and something new may have come into it.
    new = sorted(planned_files(sweep.members) - sweep.fingerprints.keys())
    if new:
        what = "a data file that was not there when the sweep began"
        remedy = "another place for it, or a new sweep"
        raise CheckpointError(Problem(what, new[0], remedy=remedy, id="D18"))


def _with_paths(member: Member, now: dict[str, str]) -> Member:
    """Return the member with other paths for its data files."""
    data = member.config.data
    if not isinstance(data, FilesConfig):
        return member

    found: dict[str, str | tuple[str, ...]] = {}
    for name, paths in data_files(data).items():
        found[name] = as_in_config(tuple(now.get(path, path) for path in paths))
    config = member.config.model_copy(update={"data": data.model_copy(update=found)})
    return replace(member, config=config)
