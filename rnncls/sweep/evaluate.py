"""Evaluate the members of a sweep again, at other lengths or with other samples."""

from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from rnncls.errors import CheckpointError, ConfigError, RnnclsError
from rnncls.sweep.outcomes import outcomes
from rnncls.sweep.plan import Sweep
from rnncls.sweep.results import evaluate_member


@dataclass(frozen=True)
class Accuracies:
    """The accuracy of every member by length."""

    by_member: dict[str, dict[int, float]]  # by name, then by length; 0 if it diverged
    settings: dict[str, str]  # of all members, by name
    diverged: list[str]  # names
    left_out: dict[str, str]  # the members without accuracy, and why

    def to_json(self) -> dict[str, Any]:
        """Return what `rnncls eval SWEEP --json` prints."""
        return {
            "accuracy": self.by_member,
            "groups": self.settings,
            "diverged": self.diverged,
            "left_out": self.left_out,
        }


def evaluate_all(sweep: Sweep, lengths: list[int] | None, samples: int | None) -> Accuracies:
    """Evaluate the last checkpoint of every member that has finished.

    `lengths` and `samples`: None for those of the sweep. Raises the first CheckpointError or
    ConfigError if no member can be evaluated.
    """
    if samples is not None:
        sweep = replace(sweep, samples=samples)

    by_member: dict[str, dict[int, float]] = {}
    diverged: list[str] = []
    left_out: dict[str, str] = {}
    first_error: RnnclsError | None = None

    for outcome in tqdm(outcomes(sweep), unit="member", disable=None):
        member = outcome.member
        if outcome.diverged:
            diverged.append(member.name)
            continue
        if outcome.state != "finished":
            left_out[member.name] = f"{outcome.state} {outcome.error_id}".strip()
            continue

        try:
            report = evaluate_member(member, sweep.run_dir(member), lengths, sweep)
        except (CheckpointError, ConfigError) as error:
            first_error = first_error or error
            left_out[member.name] = str(error)
        else:
            by_member[member.name] = {row["length"]: row["accuracy"] for row in report["by_length"]}

    if first_error and not by_member:
        raise first_error

    # Members that diverged are wrong at whatever length the others were tested.
    tested: set[int] = set()
    for accuracies in by_member.values():
        tested.update(accuracies)
    for name in diverged:
        by_member[name] = dict.fromkeys(sorted(tested), 0.0)

    settings = {member.name: member.setting for member in sweep.members}
    return Accuracies(by_member, settings, diverged, left_out)
