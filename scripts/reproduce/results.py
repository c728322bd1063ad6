"""What RESULTS.md needs of each sweep: made from its folder, kept as docs/results/NAME.json.

A result is made of whole sweeps only, so that it and RESULTS.md never show a part of one.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import mannwhitneyu

from rnncls.sweep.outcomes import Outcome, accuracies_at, by_setting
from rnncls.sweep.plan import load_sweep
from rnncls.sweep.summary import (
    LengthAccuracy,
    NoErrors,
    Setting,
    Statistics,
    SuccessRate,
    summarize,
)
from rnncls.system.files import write_atomically
from scripts.reproduce.running import read_timing

DIGITS = 6  # of an accuracy: RESULTS.md shows four

Counts = dict[float, int]  # how many members succeed, by level of accuracy


class Kept(BaseModel):
    """A part of a result file; a number that nobody asked for has no place in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KeptLength(Kept):
    """Accuracy of the members of a setting at one length."""

    median: float
    iqm: float
    lowest: float
    success: Counts


class KeptHorizon(Kept):
    """The lengths up to which all are solved (`rnncls.sweep.summary.horizon`)."""

    median: float
    lowest: int
    tested: int


class KeptNoErrors(Kept):
    """Members without an error on sequences that are read a few digits at a time."""

    longest: int
    count: int


class KeptSetting(Kept):
    """The members that differ in their seed alone."""

    name: str
    members: int
    diverged: int
    success: Counts  # over the training lengths
    solved: int  # members that reach 99.9 % in validation
    steps_to_solved: float | None  # median; None if most members never get there
    horizon: KeptHorizon
    by_length: dict[int, KeptLength]
    train_s: float | None  # seconds of steps per member, median

    # Against the first setting; None for itself.
    p_success: dict[float, float | None] | None  # by level, Fisher's exact test
    p_length: dict[int, float] | None  # by length, the test of Mann and Whitney

    # None where the sweep does not ask for them.
    structured: KeptNoErrors | None = None
    until_wrong: KeptNoErrors | None = None


class Result(Kept):
    """The content of docs/results/NAME.json."""

    command: str
    settings: list[KeptSetting]
    train_s: float | None  # seconds of steps per member, median over all
    seconds: float  # of the whole sweep
    machine: str


# --- from a sweep's folder


def result_of(folder: Path, command: str) -> Result | None:
    """Return the result of a sweep; None while its members have not all ended."""
    sweep = load_sweep(folder)
    summary = summarize(sweep)
    if any(setting.ended < setting.members for setting in summary.settings):
        return None

    members = by_setting(summary.outcomes)
    first = members[summary.settings[0].name]
    timing = read_timing(folder)
    return Result(
        command=command,
        settings=[_kept(each, members[each.name], first) for each in summary.settings],
        train_s=_train_s(summary.outcomes),
        seconds=round(timing.seconds, 1),
        machine=timing.machine,
    )


def _kept(setting: Setting, members: list[Outcome], first: list[Outcome]) -> KeptSetting:
    """Return what is kept of a setting. `first`: the members of the first one."""
    statistics = _statistics(setting)
    solved = statistics.to_solved
    horizon = statistics.horizon

    p_success = None
    if setting.p_against_first is not None:
        p_success = {level: _significant(p) for level, p in setting.p_against_first.items()}

    return KeptSetting(
        name=setting.name,
        members=setting.members,
        diverged=statistics.diverged,
        success=_counts(statistics.success),
        solved=solved.reached,
        steps_to_solved=solved.steps,
        horizon=KeptHorizon(median=horizon.median, lowest=horizon.min, tested=horizon.tested),
        by_length={n: _kept_length(length) for n, length in statistics.by_length.items()},
        train_s=_train_s(members),
        p_success=p_success,
        p_length=None if p_success is None else _p_by_length(statistics, members, first),
        structured=_kept_no_errors(statistics.structured),
        until_wrong=_kept_no_errors(statistics.until_wrong),
    )


def _kept_no_errors(found: NoErrors | None) -> KeptNoErrors | None:
    return None if found is None else KeptNoErrors(longest=found.longest, count=found.count)


def _kept_length(length: LengthAccuracy) -> KeptLength:
    return KeptLength(
        median=round(length.median, DIGITS),
        iqm=round(length.iqm, DIGITS),
        lowest=round(length.min, DIGITS),
        success=_counts(length.success),
    )


def _p_by_length(
    statistics: Statistics, members: list[Outcome], first: list[Outcome]
) -> dict[int, float]:
    """Return p values of the accuracies at each length against those of the first setting.

    Source: Mann and Whitney 1947, "On a test of whether one of two random variables is
    stochastically larger than the other"; two-sided.
    """
    p_values = {}
    for length in statistics.by_length:
        own = accuracies_at(length, members)
        others = accuracies_at(length, first)
        # Without any difference some versions of scipy return NaN, and others 1.
        p = 1.0
        if len({*own, *others}) > 1:
            p = mannwhitneyu(own, others).pvalue
        p_values[length] = float(f"{p:.3g}")
    return p_values


def _statistics(setting: Setting) -> Statistics:
    """Return the statistics of a setting whose members have all ended."""
    assert setting.statistics is not None
    return setting.statistics


def _counts(success: dict[float, SuccessRate]) -> Counts:
    return {level: rate.count for level, rate in success.items()}


def _significant(p: float | None) -> float | None:
    """Return a p value with three significant digits."""
    return None if p is None else float(f"{p:.3g}")


def _train_s(members: Sequence[Outcome]) -> float | None:
    """Return the median of the seconds of steps; None if no member has a time."""
    seconds = [outcome.train_s for outcome in members if outcome.train_s]
    return round(median(seconds), 2) if seconds else None


# --- the files


def write_result(folder: Path, name: str, result: Result) -> None:
    """Write a result as NAME.json. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    content = result.model_dump_json(indent=1) + "\n"
    write_atomically(folder / f"{name}.json", content.encode())


def read_results(folder: Path, names: Sequence[str]) -> dict[str, Result]:
    """Return the results in a folder by their names, in the order of `names`.

    Raises: ValueError for a file that has none of these names, or is no result.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.json"))}
    for name, path in found.items():
        if name not in names:
            raise ValueError(f"{path}: no sweep has this name; remove the file, or rename it")
    return {name: _read(found[name]) for name in names if name in found}


def _read(path: Path) -> Result:
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"]))
        raise ValueError(f"{path}: no result of a sweep: {place}: {detail['msg']}") from None
