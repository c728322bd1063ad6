"""The statistics of a sweep: success rates with intervals, inter-quartile means, horizons.

Members that differ in their seed alone have the same setting. Each setting has statistics of its
own, and is compared with the first one. All of it is written as summary.json and summary.csv.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from rnncls.config import SumModConfig
from rnncls.evaluation.metrics import wilson_interval
from rnncls.evaluation.structured import KINDS, kinds_of
from rnncls.sweep.outcomes import SOLVED, Outcome, accuracies_at, by_setting, outcomes
from rnncls.sweep.paths import SUMMARY_CSV, SUMMARY_JSON
from rnncls.sweep.plan import Sweep
from rnncls.system.files import write_atomically
from rnncls.system.refusals import writing

# Accuracies from which a member counts as a success. Their text is a key of summary.json.
LEVELS = (0.99, 0.999, 1.0)

# What accuracy is measured on, where there are such lengths.
TRAINING_LENGTHS = "training lengths"


@dataclass(frozen=True)
class SuccessRate:
    """How many members reach a level of accuracy."""

    count: int
    of: int
    rate: float
    ci95: tuple[float, float]  # Wilson interval


@dataclass(frozen=True)
class AccuracyStatistics:
    """Accuracy over the training lengths."""

    mean: float
    median: float
    min: float


@dataclass(frozen=True)
class LengthAccuracy:
    """Accuracy at one length."""

    median: float
    iqm: float  # inter-quartile mean
    min: float
    success: dict[float, SuccessRate]  # by level


@dataclass(frozen=True)
class HorizonStatistics:
    """The length up to which all tested lengths are solved (see `horizon`)."""

    median: float
    min: int
    tested: int  # the longest length tested: a horizon cannot be longer


@dataclass(frozen=True)
class SolvedStatistics:
    """Training until validation accuracy reaches SOLVED."""

    reached: int  # members that reached it

    # The median, in which members that never reach it count as infinite; None if it is infinite.
    # To leave them out would make a setting look fast that seldom gets there.
    steps: float | None
    sequences: float | None


@dataclass(frozen=True)
class NoErrors:
    """How many members have no error on sequences that are read a few digits at a time."""

    longest: int  # the length up to which they were read
    count: int
    of: int
    rate: float
    ci95: tuple[float, float]  # Wilson interval


@dataclass(frozen=True)
class Statistics:
    """Statistics of those members of a setting that have ended."""

    measure: str  # what accuracy is measured on
    diverged: int
    accuracy: AccuracyStatistics
    success: dict[float, SuccessRate]  # by level, over the training lengths
    by_length: dict[int, LengthAccuracy]
    horizon: HorizonStatistics
    to_solved: SolvedStatistics
    structured: NoErrors | None  # None where the sweep does not ask for them
    until_wrong: NoErrors | None


@dataclass(frozen=True)
class Setting:
    """The members that share the values of the grid and differ in their seed alone."""

    name: str  # the values, as text
    members: int
    ended: int
    broken: list[str]  # ids of the errors, other than divergence, that members failed with
    statistics: Statistics | None  # None until a member has ended
    p_against_first: dict[float, float | None] | None = None  # by level; None if not compared

    def to_json(self) -> dict[str, Any]:
        """Return the setting as it stands among the "groups" of summary.json."""
        content: dict[str, Any] = {
            "group": self.name,
            "members": self.members,
            "ended": self.ended,
            "broken": self.broken,
        }
        # Without results these keys are absent: numbers that nobody counted have no place.
        if self.statistics is not None:
            content |= asdict(self.statistics)
            for key in ("structured", "until_wrong"):
                if content[key] is None:
                    del content[key]
        if self.p_against_first is not None:
            content["p_against_first"] = self.p_against_first
        return content


@dataclass(frozen=True)
class Summary:
    """The statistics of a sweep, and the outcomes that they are computed from."""

    settings: list[Setting]
    outcomes: list[Outcome]

    def to_json(self) -> dict[str, Any]:
        """Return the content of summary.json."""
        groups = [setting.to_json() for setting in self.settings]
        members = [member_row(outcome) for outcome in self.outcomes]
        # JSON has text for keys: lengths and levels become such as "10" and "0.999".
        content: dict[str, Any] = json.loads(json.dumps({"groups": groups, "members": members}))
        return content


def summarize(sweep: Sweep) -> Summary:
    """Return statistics of each setting, compared with the first, and every outcome."""
    all_outcomes = outcomes(sweep)

    settings: list[Setting] = []
    for name, members in by_setting(all_outcomes).items():
        setting = summarize_setting(name, members)
        # All others are compared with the first setting: the order of the grid decides which it is.
        if settings:
            setting = replace(setting, p_against_first=_compare(settings[0], setting))
        settings.append(setting)
    return Summary(settings, all_outcomes)


def summarize_setting(name: str, members: Sequence[Outcome]) -> Setting:
    """Return the statistics of members that differ in their seed alone."""
    ended = [outcome for outcome in members if outcome.ended]

    # An interrupted member will be resumed; any other error is to be looked at.
    broken = set()
    for outcome in members:
        if outcome.error_id and not outcome.ended and outcome.state != "interrupted":
            broken.add(outcome.error_id)

    return Setting(
        name,
        members=len(members),
        ended=len(ended),
        broken=sorted(broken),
        statistics=_statistics(ended) if ended else None,
    )


def _statistics(ended: Sequence[Outcome]) -> Statistics:
    """Return statistics of members that have ended; those that diverged have accuracy 0."""
    accuracies = [outcome.accuracy for outcome in ended]
    horizons = [horizon(outcome.accuracies) for outcome in ended]

    lengths: set[int] = set()
    for outcome in ended:
        lengths.update(outcome.accuracies)

    # A length of one member alone has statistics too; `of` says how many members were tested at it.
    by_length = {}
    for length in sorted(lengths):
        by_length[length] = _length_accuracy(accuracies_at(length, ended))

    return Statistics(
        measure=TRAINING_LENGTHS if ended[0].tested else "test sequences",
        diverged=sum(outcome.diverged for outcome in ended),
        accuracy=AccuracyStatistics(mean(accuracies), median(accuracies), min(accuracies)),
        success=_success_by_level(accuracies),
        by_length=by_length,
        horizon=HorizonStatistics(median(horizons), min(horizons), max(lengths, default=0)),
        to_solved=_solved_statistics(ended),
        structured=_no_errors(ended, ended[0].long.structured, _structured_right),
        until_wrong=_no_errors(ended, ended[0].long.until_wrong, _never_wrong),
    )


def _no_errors(
    ended: Sequence[Outcome], longest: int | None, is_right: Callable[[Outcome], bool]
) -> NoErrors | None:
    if longest is None:
        return None
    rate = success([float(is_right(outcome)) for outcome in ended], 1.0)
    return NoErrors(longest, rate.count, rate.of, rate.rate, rate.ci95)


def _structured_right(outcome: Outcome) -> bool:
    """Return whether a member is right on every sequence with a structure; not if it diverged."""
    found = outcome.evaluation
    if outcome.diverged or found is None or found.structured is None:
        return False
    return found.structured.all_right


def _never_wrong(outcome: Outcome) -> bool:
    """Return whether a member is never wrong on a random sequence; not if it diverged."""
    found = outcome.evaluation
    if outcome.diverged or found is None or found.until_wrong is None:
        return False
    return found.until_wrong.never == found.until_wrong.sequences


def _length_accuracy(accuracies: Sequence[float]) -> LengthAccuracy:
    return LengthAccuracy(
        median=median(accuracies),
        iqm=interquartile_mean(accuracies),
        min=min(accuracies),
        success=_success_by_level(accuracies),
    )


def _solved_statistics(ended: Sequence[Outcome]) -> SolvedStatistics:
    # Members that never get there come after all others.
    steps = [outcome.steps_to_solved or math.inf for outcome in ended]
    reached = sum(step < math.inf for step in steps)

    middle = median(steps)
    if middle == math.inf:
        return SolvedStatistics(reached, steps=None, sequences=None)

    # The same for all members: they differ in the seed alone.
    batch_size = ended[0].member.config.train.batch_size
    return SolvedStatistics(reached, steps=middle, sequences=middle * batch_size)


def _success_by_level(accuracies: Sequence[float]) -> dict[float, SuccessRate]:
    return {level: success(accuracies, level) for level in LEVELS}


def _compare(first: Setting, other: Setting) -> dict[float, float | None] | None:
    """Return the p value at each level; None unless both settings have members that ended."""
    if first.statistics is None or other.statistics is None:
        return None

    p_values = {}
    for level in LEVELS:
        p_values[level] = fisher(first.statistics.success[level], other.statistics.success[level])
    return p_values


def success(accuracies: Sequence[float], level: float) -> SuccessRate:
    """Return how many of the accuracies reach the level, and the rate with its 95 % interval."""
    count = sum(accuracy >= level for accuracy in accuracies)
    total = len(accuracies)
    return SuccessRate(count, total, count / total, wilson_interval(count, total))


def fisher(first: SuccessRate, other: SuccessRate) -> float | None:
    """Return the p value of two success rates by Fisher's exact test, two-sided.

    None without scipy, which is an optional dependency.
    """
    try:
        from scipy.stats import fisher_exact
    except ImportError:
        return None

    # A row per setting: members that succeed, and members that do not.
    contingency = [[rate.count, rate.of - rate.count] for rate in (first, other)]
    return float(fisher_exact(contingency).pvalue)


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean without the lowest and the highest quarter, each rounded down.

    >>> interquartile_mean([0.0, 1.0, 1.0, 4.0])
    1.0
    """
    cut = len(values) // 4
    return mean(sorted(values)[cut : len(values) - cut])


def mean(values: Sequence[float]) -> float:
    """Return the mean: of equal numbers exactly that number."""
    # The mean is compared with a level, and a rounded sum of ones may miss 1.
    if min(values) == max(values):
        return values[0]
    return math.fsum(values) / len(values)


def horizon(accuracies: dict[int, float]) -> int:
    """Return the length up to which accuracy is at least SOLVED at every length tested.

    0 if it is not at the shortest one.
    """
    # The first failure ends it: longer lengths that are right again do not count.
    reached = 0
    for length, accuracy in sorted(accuracies.items()):
        if accuracy < SOLVED:
            break
        reached = length
    return reached


def member_row(outcome: Outcome) -> dict[str, Any]:
    """Return a member's line of summary.csv, by column; summary.json has the same."""
    # The grid's keys are whole, such as optimizer.lr, and so differ from all other columns.
    row: dict[str, Any] = {
        "name": outcome.member.name,
        "seed": outcome.member.config.seed,
        **outcome.member.values,
        "state": outcome.state,
        "error": outcome.error_id or None,
        "step": outcome.step,
        "accuracy": outcome.accuracy if outcome.ended else None,
        "horizon": horizon(outcome.accuracies) if outcome.ended else None,
        "steps_to_solved": outcome.steps_to_solved,
        "train_s": outcome.train_s,
    }
    for length, accuracy in outcome.accuracies.items():
        row[f"accuracy_at_{length}"] = accuracy
    return row | _long_columns(outcome)


def _long_columns(outcome: Outcome) -> dict[str, Any]:
    """Return what a member's line says of sequences that are read a few digits at a time.

    Those with a structure: for each kind the length up to which all are right. The random ones: the
    share that is never wrong, and the lengths at which others first are. A member that diverged is
    wrong everywhere. A kind without sequences has no length.
    """
    columns: dict[str, Any] = {}
    found = None if outcome.diverged else outcome.evaluation
    if outcome.long.structured is not None:
        structured = None if found is None else found.structured
        lengths: dict[str, int | None] = dict.fromkeys(KINDS)
        data = outcome.member.config.data
        if outcome.diverged and isinstance(data, SumModConfig):
            lengths |= dict.fromkeys(kinds_of(data.num_embeddings), 0)
        if structured is not None:
            lengths |= {kind.kind: kind.longest_right for kind in structured.kinds}
        columns |= {f"right_on_{kind}": length for kind, length in lengths.items()}

    if outcome.long.until_wrong is not None:
        until_wrong = None if found is None else found.until_wrong
        columns["never_wrong"] = 0.0 if outcome.diverged else None
        columns["first_wrong_lowest"] = None
        columns["first_wrong_median"] = None
        if until_wrong is not None:
            columns["never_wrong"] = until_wrong.never / until_wrong.sequences
            columns["first_wrong_lowest"] = until_wrong.lowest
            columns["first_wrong_median"] = until_wrong.median
    return columns


def write_summary(sweep: Sweep, summary: Summary) -> None:
    """Write summary.json and summary.csv, for a process that holds the folder.

    Raises: WriteError.
    """
    content = json.dumps(summary.to_json(), indent=1, allow_nan=False)
    with writing(sweep.folder):
        write_atomically(sweep.folder / SUMMARY_JSON, content.encode())
        write_atomically(sweep.folder / SUMMARY_CSV, _as_csv(summary).encode())


def _as_csv(summary: Summary) -> str:
    rows = [member_row(outcome) for outcome in summary.outcomes]

    # Members may have been tested at different lengths. A dictionary keeps the columns in order.
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))

    # The csv module writes line ends of its own, which must not be translated.
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
