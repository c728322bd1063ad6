"""The pictures: a panel for each setting, with one line style for each thing that is drawn."""

from typing import TYPE_CHECKING, Any

from rnncls.system.pictures import default_style, in_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = list[dict[str, Any]]

WIDTH = 2.6  # of a panel, in inches
HEIGHT = 2.3
MOST_BESIDE = 4
MOST_OF_NAME = 60

# Largest and smallest value of the logarithmic axis of drift.
LEAST_DRIFT = 1e-3
MOST_DRIFT = 1e3

DARK = "#1f4e79"
LIGHT = "#d1801a"
GREEN = "#2d7d46"


def by_setting(results: Results) -> dict[str, Results]:
    """Return the results of each setting; those with fewer ingredients come first."""
    groups: dict[str, Results] = {}
    for result in results:
        groups.setdefault(result["setting"], []).append(result)
    return dict(sorted(groups.items(), key=lambda item: (order_of(item[0]), item[0])))


def order_of(setting: str) -> int:
    """Return how many ingredients a setting names."""
    return 0 if setting == "none of them" else 1 + setting.count(",")


def panels(groups: dict[str, Results]) -> "tuple[Figure, list[Axes]]":
    """Return a figure with a panel for each setting, which has the setting as its title."""
    from matplotlib.figure import Figure

    columns = min(MOST_BESIDE, len(groups))
    rows = -(-len(groups) // columns)
    # The legend and the names of the axes need room beside the panels.
    size = (max(WIDTH * columns, 5.0) + 0.4, HEIGHT * rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for each in axes[len(groups) :]:
        each.set_axis_off()
    for each, (setting, members) in zip(axes, groups.items(), strict=False):
        name = in_picture(setting, MOST_OF_NAME).replace(", ", ",\n", 1)
        many = "" if len(members) == 1 else f" ({len(members)} runs)"
        each.set_title(name + many, fontsize=8, parse_math=False)
        each.tick_params(labelsize=7)
        each.grid(alpha=0.3, linewidth=0.5)
    return figure, axes


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """Add what the lines of a panel mean, above all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8)


@default_style()
def margins_picture(results: Results) -> "Figure":
    """Draw the margin of random sequences by time: the median and the first percentile of each run.

    It is in parts of the run's own median margin within the lengths of training, which differs much
    with label smoothing.
    """
    groups = by_setting(results)
    figure, axes = panels(groups)
    for each, members in zip(axes, groups.values(), strict=False):
        for number, member in enumerate(members):
            of = member["margins"]
            times = of["times"]
            trained = [
                margin
                for time, margin in zip(times, of["median"], strict=True)
                if time <= member["trained_to"]
            ]
            unit = sum(trained) / len(trained)
            median = [margin / unit for margin in of["median"]]
            low = [margin / unit for margin in of["first_percentile"]]
            names = ("median", "1 % of the sequences are lower") if number == 0 else (None, None)
            each.plot(times, median, color=DARK, linewidth=1.4, label=names[0])
            each.plot(times, low, color=LIGHT, linewidth=1.2, linestyle="--", label=names[1])
        each.axhline(0, color="black", linewidth=0.8)
        each.axvline(members[0]["trained_to"], color="0.4", linestyle=":", linewidth=1)
        each.set(xscale="log", ylim=(-1.5, 1.5))

    figure.supxlabel("length (dotted: the longest in training)", fontsize=9)
    figure.supylabel("margin, 1 = in training; below 0: wrong", fontsize=9)
    add_legend(figure, axes[0])
    return figure


@default_style()
def drift_picture(results: Results) -> "Figure":
    """Draw how far states go from their class means on zeros: the largest of the digits, by run."""
    groups = by_setting(results)
    figure, axes = panels(groups)
    for each, members in zip(axes, groups.values(), strict=False):
        for number, member in enumerate(members):
            of = member["drift"]["zeros"]
            names = ("seen by the head", "the rest of the state") if number == 0 else (None, None)
            seen = [min(max(value, LEAST_DRIFT), MOST_DRIFT) for value in of["seen_largest"]]
            rest = [min(max(value, LEAST_DRIFT), MOST_DRIFT) for value in of["rest_largest"]]
            each.plot(of["times"], seen, color=DARK, linewidth=1.4, label=names[0])
            each.plot(of["times"], rest, color=LIGHT, linewidth=1.2, linestyle="--", label=names[1])
        each.axhline(0.5, color="black", linewidth=0.8)
        each.set(xscale="log", yscale="log")

    figure.supxlabel("digits: one, then zeros", fontsize=9)
    figure.supylabel("distance from the class mean", fontsize=9)
    add_legend(figure, axes[0])
    return figure


@default_style()
def exponents_picture(results: Results) -> "Figure":
    """Draw the leading Lyapunov exponents of each run, along random digits and along zeros."""
    from matplotlib.figure import Figure

    groups = by_setting(results)
    figure = Figure(figsize=(6.4, 1.1 + 0.45 * len(groups)), layout="constrained")
    axes = figure.subplots()
    kinds = (
        ("random", "random digits", "o", DARK, -0.2),
        ("first_zeros", "the first 20 zeros", "^", GREEN, 0.0),
        ("zeros", "zeros later on", "s", LIGHT, 0.2),
    )
    for place, members in enumerate(groups.values()):
        for key, label, marker, colour, shift in kinds:
            values = [member["exponents"][key][0] for member in members]
            face = colour if key == "random" else "none"
            axes.plot(
                values,
                [place + shift] * len(values),
                marker,
                color=colour,
                markerfacecolor=face,
                markersize=6,
                label=label if place == 0 else None,
            )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(groups)), [in_picture(name, MOST_OF_NAME) for name in groups])
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    axes.set_xlabel("growth of an error, log per digit (below 0: dies out)", fontsize=9)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure
