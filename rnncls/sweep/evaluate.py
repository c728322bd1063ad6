"""Evaluate the members of a sweep again, at other lengths or with other samples."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rnncls.config.ranges import NOTHING_LONG, Long, require_generated_data
from rnncls.data.files.search import Search
from rnncls.errors import CheckpointError, ConfigError, RnnclsError
from rnncls.evaluation.long_sequences import LongReport
from rnncls.sweep.outcomes import outcomes
from rnncls.sweep.plan import load_sweep, require_streams
from rnncls.sweep.results import evaluate_member


@dataclass(frozen=True)
class Accuracies:
    """The accuracy of every member by length."""

    by_member: dict[str, dict[int, float]]  # by name, then by length; 0 if it diverged
    settings: dict[str, str]  # of all members, by name
    diverged: list[str]  # names
    left_out: dict[str, str]  # why a member has no accuracy, by name
    long: dict[str, LongReport]  # what was asked for beside them, by name; without what diverged

    def to_json(self) -> dict[str, Any]:
        """Return what `rnncls eval SWEEP --json` prints."""
        content: dict[str, Any] = {
            "accuracy": self.by_member,
            "groups": self.settings,
            "diverged": self.diverged,
            "left_out": self.left_out,
        }
        for name, report in self.long.items():
            for part, said in report.to_json().items():
                content.setdefault(part, {})[name] = said
        return content


def evaluate_all(
    folder: Path,
    lengths: list[int] | None,
    samples: int | None,
    data_dir: Path | None = None,
    long: Long = NOTHING_LONG,
) -> Accuracies:
    """Evaluate the last checkpoint of every member of a sweep that has finished.

    `lengths` and `samples`: None for those of the sweep. `data_dir`: where data files are looked
    for that were moved, besides the places beside the sweep. `long`: sequences that are read a few
    digits at a time.

    Raises: ConfigError if there is no sweep in the folder, for lengths where the data is not
    generated, and for a member that `long` cannot be asked of. The first CheckpointError or
    ConfigError if no member can be evaluated.
    """
    sweep = load_sweep(folder)
    if lengths is not None:
        require_generated_data(sweep.members[0].config)
    # All of them, before any is evaluated: values of the grid can replace data and model.
    require_streams(sweep.members, long)

    # Changed in memory only: sweep.yaml keeps the number of samples that evaluation.json is from.
    if samples is not None:
        sweep = replace(sweep, samples=samples)

    search = Search(folder, data_dir)
    by_member: dict[str, dict[int, float]] = {}
    on_long: dict[str, LongReport] = {}
    diverged: list[str] = []
    left_out: dict[str, str] = {}
    first_error: RnnclsError | None = None

    for outcome in tqdm(outcomes(sweep), unit="member", disable=None):
        member = outcome.member

        # Weights that are not finite are never committed, so there may well be a checkpoint from
        # before. To evaluate it would reward a config whose training fails.
        if outcome.diverged:
            diverged.append(member.name)
            continue

        if outcome.state != "finished":
            left_out[member.name] = f"{outcome.state} {outcome.error_id}".strip()
            continue

        try:
            run_dir = sweep.run_dir(member)
            evaluated = evaluate_member(member, run_dir, lengths, sweep, search=search, long=long)
        except (CheckpointError, ConfigError) as error:
            # One damaged or foreign member must not hide the others. Errors of the data or of the
            # machine would hit them all, and end the command.
            first_error = first_error or error
            left_out[member.name] = "; ".join(problem.what for problem in error.problems)
        else:
            rows = evaluated.report.by_length
            by_member[member.name] = {row.length: row.accuracy for row in rows}
            on_long[member.name] = evaluated.long

    if first_error and not by_member:
        raise first_error

    # Only now is it known at which lengths the others were tested: data files decide that.
    _count_as_wrong(diverged, by_member)
    settings = {member.name: member.setting for member in sweep.members}
    return Accuracies(by_member, settings, diverged, left_out, on_long)


def _count_as_wrong(diverged: list[str], by_member: dict[str, dict[int, float]]) -> None:
    """Give members that diverged an accuracy of 0 at whatever length the others were tested."""
    tested: set[int] = set()
    for accuracies in by_member.values():
        tested.update(accuracies)
    for name in diverged:
        by_member[name] = dict.fromkeys(sorted(tested), 0.0)
