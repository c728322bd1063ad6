"""What the pictures of a sweep have in common: sizes, legends, and how settings are told apart.

A setting has a colour and a marker. Its members that solve the task are drawn with solid lines and
full markers, the others in a darker shade, dashed, with hollow markers: a median of both would be
that of no member.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rnncls.sweep.outcomes import SOLVED, Outcome, by_setting
from rnncls.sweep.plan import format_setting
from rnncls.system.pictures import in_picture
from rnncls.system.shown import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In inches. TensorBoard shows a picture at 330 pixels width first, where this text is still read.
WIDTH = 4.6
HEIGHT = 2.7
LINE = 0.2  # of a line of the legend
DPI = 150

# Members drawn per setting. More thin lines only blacken the picture, and of many settings any do;
# the median is of all members.
MOST_LINES = 200
MOST_WITH_LINES = 12

# Matplotlib's cycle has ten colours. No two of 130 settings share both colour and marker.
NUM_COLOURS = 10
MARKERS = "osD^vPX*h<>dp"
DARKER = 0.55

# So many lines of the legend fit below the picture, and so many characters into one of them.
MOST_NAMED = 20
MOST_OF_NAME = 48
MOST_OF_TWO = 29  # characters of a line, if two are to stand side by side
MOST_OF_THREE = 15  # the same of three
MANY_LINES = 8  # of the legend, from which on they are smaller
SMALLER = 1.25  # so many times as many of their characters fit


@dataclass(frozen=True)
class Part:
    """The members of a setting that solve the task, or its others, and how they are drawn."""

    members: list[Outcome]
    setting: int  # its number
    is_solved: bool
    label: str
    colour: Any
    style: str
    marker: str

    drawn: list[Outcome]  # those that have a line of their own

    @property
    def thin(self) -> dict[str, Any]:
        """The options of a member's line."""
        return {"color": self.colour, "linestyle": self.style, "alpha": 0.35, "linewidth": 0.7}

    @property
    def thick(self) -> dict[str, Any]:
        """The options of the median's line."""
        face = self.colour if self.is_solved else "white"
        line = {"color": self.colour, "linestyle": self.style, "linewidth": 1.8}
        return {**line, "marker": self.marker, "markersize": 5, "markerfacecolor": face}


def solves(outcome: Outcome) -> bool:
    """Return whether a member that has ended solves the task."""
    return outcome.accuracy >= SOLVED


def parts_of(ended: Sequence[Outcome]) -> list[Part]:
    """Return the members of each setting: those that solve the task, then the others."""
    # A setting keeps its number, and so its colour, in all pictures.
    settings = by_setting(ended)
    parts = []
    for number, members in enumerate(settings.values()):
        name = name_of(members[0])
        for is_solved in (True, False):
            part = [outcome for outcome in members if solves(outcome) is is_solved]
            if not part:
                continue
            words = "solved" if is_solved else "not solved"
            count = f"{words}, {len(part):,} of {len(members):,}"
            parts.append(
                Part(
                    members=part,
                    setting=number,
                    is_solved=is_solved,
                    label=f"{name}: {count}" if name else count,
                    colour=_colour(number, is_solved, len(settings)),
                    style="-" if is_solved else "--",
                    marker=marker_of(number),
                    drawn=part[:MOST_LINES] if len(settings) <= MOST_WITH_LINES else [],
                )
            )
    return parts


def name_of(outcome: Outcome, most: int = MOST_OF_NAME) -> str:
    """Return the setting of a member as it stands in a picture; empty without a grid."""
    return in_picture(format_setting(outcome.member.values, short=True), most)


def marker_of(number: int) -> str:
    """Return the marker of the `number`th setting."""
    return MARKERS[number % len(MARKERS)]


def colour_of(number: int) -> str:
    """Return the colour of the `number`th setting."""
    return f"C{number % NUM_COLOURS}"


def _colour(number: int, is_solved: bool, num_settings: int) -> Any:
    """Return the colour of a part of the `number`th setting."""
    from matplotlib.colors import to_rgb

    if is_solved:
        return colour_of(number)
    # Without a grid no other setting needs the next colour.
    if num_settings == 1:
        return colour_of(1)
    return tuple(DARKER * share for share in to_rgb(colour_of(number)))


def new_axes(title: str, height: float = HEIGHT) -> "tuple[Figure, Axes]":
    """Return a new figure with this title, and its axes."""
    # Without pyplot, which would look for a display and keep every figure. Imported here because it
    # takes long.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize="medium", parse_math=False)
    return figure, axes


def title_of(ended: Sequence[Outcome]) -> str:
    """Return how many members there are, and how they ended."""
    num_solved = sum(solves(outcome) for outcome in ended)
    title = f"{counted(len(ended), 'member')}, {num_solved:,} solved"

    num_diverged = sum(outcome.diverged for outcome in ended)
    return f"{title}, {num_diverged:,} not finite" if num_diverged else title


def meaning_of_lines(ended: Sequence[Outcome]) -> str:
    """Return what the lines of a picture are, for the legend."""
    where = "at training lengths" if any(outcome.tested for outcome in ended) else "in the test"
    solved = f"solved: {100 * SOLVED:g} % accuracy {where}"
    has_members = len(by_setting(ended)) <= MOST_WITH_LINES
    return f"thick: median, thin: a member; {solved}" if has_members else f"medians; {solved}"


def legend_below(figure: "Figure", axes: "Axes", title: str = "") -> None:
    """Add the legend below the axes, where it hides nothing: the first MOST_NAMED lines of it.

    The figure becomes higher by the legend.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    if len(labels) > MOST_NAMED:
        # An invisible line of no points stands beside the dots.
        handles = [*handles[:MOST_NAMED], axes.plot([], [], alpha=0)[0]]
        labels = [*labels[:MOST_NAMED], f"... and {len(labels) - MOST_NAMED:,} more"]

    is_long = len(labels) > MANY_LINES
    longest = max(map(len, labels)) / (SMALLER if is_long else 1)
    columns = 3 if longest <= MOST_OF_THREE else 2 if longest <= MOST_OF_TWO else 1
    lines = -(-len(labels) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + LINE * lines)

    legend = figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize="x-small" if is_long else "small",
        title=title or None,
        title_fontsize="small",
        frameon=False,
        handlelength=3,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
