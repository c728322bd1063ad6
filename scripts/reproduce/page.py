"""RESULTS.md: a section for each result."""

from collections.abc import Mapping, Sequence

from rnncls.evaluation.metrics import wilson_interval
from scripts.reproduce.results import KeptHorizon, KeptNoErrors, KeptSetting, Result
from scripts.reproduce.sweeps import Sweep

HEAD = """# Results

Written by `python -m scripts.reproduce` from the sweeps it runs; nothing is typed by hand. Every
seed counts, also one that failed; the last checkpoint of each is evaluated; nothing is selected
by test accuracy. Labels are of whole sequences, but for `train.objective=prefix`. Success is by
the mean accuracy over the training lengths; intervals are Wilson's, 95 %; steps to 99.9 % are the
median over all members, those that never get there counted as later than all others; the horizon
is the largest evaluated length up to which all are at least 99.9 %. The numbers are kept in
`docs/results/`, also of lengths that are not shown here.

[Real text](docs/results/text.md), beside TF-IDF with logistic regression, has a page of its own.
"""

# A difference of accuracies is marked below this p value.
MARKED_P = 0.01


def page(sweeps: Mapping[str, Sweep], results: Mapping[str, Result]) -> str:
    """Return RESULTS.md, with a section for each result, in their order."""
    lines = [*HEAD.splitlines(), ""]
    for name, result in results.items():
        lines += _section(sweeps[name], result)
    return "\n".join(lines).rstrip() + "\n"


def _section(sweep: Sweep, result: Result) -> list[str]:
    """Return the lines of a sweep's section."""
    lines = [f"## {sweep.title}", "", sweep.text, "", "```sh", result.command, "```", ""]
    if sweep.compared:
        lines += _compared(result.settings, sweep.shown)
        lines += ["", f"{_seconds(result)}.", ""]
        return lines

    lines += _success_table(result.settings)
    lines += ["", *_length_table(result.settings, sweep.shown)]
    lines += _significance(result.settings)
    lines += ["", _cost(result), ""]
    return lines


def _success_table(settings: list[KeptSetting]) -> list[str]:
    """Return a row per setting: how many members succeed, how soon, and up to what length."""
    titles = ["", "members", "not finite", "at least 99 %", "at least 99.9 %", "100 %"]
    titles += ["steps to 99.9 %", "horizon", *_titles_of_long(settings[0])]
    # The first title is empty, and has one space.
    lines = ["|" + _row(titles)[2:], "|---" * len(titles) + "|"]
    for setting in settings:
        rates = [_rate(count, setting) for count in setting.success.values()]

        counts = [str(setting.members), str(setting.diverged)]
        cells = [setting.name or "all", *counts, *rates, _steps(setting)]
        on_long = [_rate(part.count, setting) for part in _of_long(setting).values()]
        lines.append(_row([*cells, _horizon(setting.horizon), *on_long]))
    return lines


def _of_long(setting: KeptSetting) -> dict[str, KeptNoErrors]:
    """Return by title what there is on sequences that are read a few digits at a time."""
    parts = {"all structured": setting.structured, "never wrong": setting.until_wrong}
    return {title: part for title, part in parts.items() if part is not None}


def _titles_of_long(setting: KeptSetting) -> list[str]:
    return [f"{title} to {part.longest:,}" for title, part in _of_long(setting).items()]


def _rate(count: int, setting: KeptSetting) -> str:
    """Return how many members of a setting succeed, with the interval of their share."""
    low, high = wilson_interval(count, setting.members)
    return f"{count} ({low:.2f} to {high:.2f})"


def _length_table(settings: list[KeptSetting], lengths: Sequence[int]) -> list[str]:
    """Return rows of each setting: accuracies over its members by length, and how many succeed."""
    lines = _header(lengths)
    for setting in settings:
        label = f"{setting.name} " if setting.name else ""
        # Not every length is evaluated, and none is where all members diverged.
        at = [setting.by_length.get(n) for n in lengths]

        medians = [f"{length.median:.4f}" if length else "" for length in at]
        means = [f"{length.iqm:.4f}" if length else "" for length in at]
        lowest = [f"{length.lowest:.4f}" if length else "" for length in at]
        lines.append(_row([f"{label}median", *medians]))
        lines.append(_row([f"{label}inter-quartile mean", *means]))
        lines.append(_row([f"{label}lowest", *lowest]))
        for level, title in ((0.99, ">= 99 %"), (1.0, "100 %")):
            counts = [
                f"{length.success[level]}/{setting.members}" if length else "" for length in at
            ]
            lines.append(_row([f"{label}{title}", *counts]))
    return lines


def _significance(settings: list[KeptSetting]) -> list[str]:
    """Return a line for each setting after the first, where the two were compared."""
    lines = []
    first = settings[0].name
    for setting in settings[1:]:
        p = setting.p_success[0.99] if setting.p_success else None
        if p is not None:
            against = f"{first} against {setting.name}"
            lines += ["", f"Fisher's exact test, {against}, at 99 %: p = {p:.2g}."]
    return lines


def _cost(result: Result) -> str:
    """Return a line on the time that the sweep took."""
    per_member = ""
    if result.train_s:
        seconds = f"{result.train_s:.1f} s of steps per member"
        per_member = f"{seconds} (median, beside another one), "
    return f"{per_member}{_seconds(result)}."


def _seconds(result: Result) -> str:
    return f"{result.seconds:,.0f} s in all on {result.machine}"


# --- settings beside the first one


def _compared(settings: list[KeptSetting], lengths: Sequence[int]) -> list[str]:
    """Return tables with a row per setting, and what is worse or better than the first one."""
    titles = ["", "not finite", "at least 99 %", "p", "100 %", "steps to 99.9 %", "horizon"]
    titles += [*_titles_of_long(settings[0]), "s of steps"]
    lines = ["|" + _row(titles)[2:], "|---" * len(titles) + "|"]
    for setting in settings:
        p = setting.p_success[0.99] if setting.p_success else None
        on_long = [f"{part.count}/{setting.members}" for part in _of_long(setting).values()]
        lines.append(
            _row(
                [
                    _short(setting.name),
                    str(setting.diverged),
                    f"{setting.success[0.99]}/{setting.members}",
                    "" if p is None else f"{p:.2g}",
                    f"{setting.success[1.0]}/{setting.members}",
                    _steps(setting),
                    _horizon(setting.horizon),
                    *on_long,
                    "" if setting.train_s is None else f"{setting.train_s:.1f}",
                ]
            )
        )

    lines += ["", "Median accuracy, the lowest, and members with at least 99 %:", ""]
    lines += _header(lengths)
    for setting in settings:
        cells = [_length_cell(setting, n) if n in setting.by_length else "" for n in lengths]
        lines.append(_row([_short(setting.name), *cells]))

    lines += ["", f"p is of Fisher's exact test against {_short(settings[0].name)}."]
    lines.append(f"By the test of Mann and Whitney, at p < {MARKED_P}:")
    lines += ["", *_differences(settings, lengths)]
    return lines


def _length_cell(setting: KeptSetting, length: int) -> str:
    at = setting.by_length[length]
    return f"{at.median:.4f}, {at.lowest:.4f}, {at.success[0.99]}/{setting.members}"


def _differences(settings: list[KeptSetting], lengths: Sequence[int]) -> list[str]:
    """Return a line for each setting after the first: at which lengths it is worse, or better."""
    first = settings[0]
    lines = []
    for setting in settings[1:]:
        worse = []
        better = []
        for n in lengths:
            if setting.p_length is None or setting.p_length.get(n, 1.0) >= MARKED_P:
                continue
            # Ranks and not medians decide; the inter-quartile means show which way.
            if setting.by_length[n].iqm < first.by_length[n].iqm:
                worse.append(f"{n:,}")
            else:
                better.append(f"{n:,}")

        parts = []
        if worse:
            parts.append(f"worse at {_of_lengths(worse)}")
        if better:
            parts.append(f"better at {_of_lengths(better)}")
        lines.append(f"- {_short(setting.name)}: {'; '.join(parts) or 'no difference'}")
    return lines


def _of_lengths(lengths: Sequence[str]) -> str:
    return f"length{'s' if len(lengths) > 1 else ''} {', '.join(lengths)}"


def _short(name: str) -> str:
    """Return the name of a setting without the sections of its keys.

    >>> _short("model.init_gain=0.3 data.repeat_share=0.5 seed=1")
    'init_gain=0.3 repeat_share=0.5 seed=1'
    """
    words = []
    for word in name.split(" "):
        key, _, value = word.partition("=")
        words.append(f"{key.rpartition('.')[2]}={value}")
    return " ".join(words)


# --- cells


def _header(lengths: Sequence[int]) -> list[str]:
    """Return the head of a table with a column for each length."""
    titles = [f"length {n:,}" for n in lengths]
    return [f"| | {' | '.join(titles)} |", "|---" * (len(lengths) + 1) + "|"]


def _row(cells: list[str]) -> str:
    """Return a row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def _steps(setting: KeptSetting) -> str:
    """Return after how many steps members are solved, or how many ever are."""
    if setting.steps_to_solved is None:
        return f"{setting.solved} reach it"
    return f"{setting.steps_to_solved:,.0f}"


def _horizon(horizon: KeptHorizon) -> str:
    """Return the median and the lowest horizon of a setting.

    A horizon that is the longest length tested may in truth be longer.
    """
    texts = []
    for length in (horizon.median, horizon.lowest):
        at_least = ">= " if length == horizon.tested else ""
        texts.append(f"{at_least}{length:,.0f}")
    return ", lowest ".join(texts)
