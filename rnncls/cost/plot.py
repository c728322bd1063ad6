"""The picture of time and memory by length, beside O(B T d^2) and O(B T d)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rnncls.cost.report import Row, activations_bytes, step_ms
from rnncls.system.pictures import add_legend, default_style, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IN_LEGEND = 12

Value = Callable[[Row], float | None]


@default_style()
def draw_cost(rows: Sequence[Row], path: Path) -> None:
    """Draw the time of a step and the memory of activations into a PNG. Raises: WriteError.

    There is a line for each hidden size, and a dashed one for the law; torch's own modules are
    dotted. With a single length, hidden sizes take its place.
    """
    # Imported here because it takes long. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, rows, lambda row: step_ms(row.outcome), lambda row: row.fitted_step_ms)
    left.set(ylabel="time of an eager step (ms)", title="time, and O(B T d²) dashed")
    _draw(
        right,
        rows,
        lambda row: _mebibytes(activations_bytes(row.outcome)),
        lambda row: _mebibytes(row.fitted_activations_bytes),
    )
    right.set(ylabel="peak of activations (MiB)", title="memory, and O(B T d) dashed")
    if left.get_legend_handles_labels()[1]:
        add_legend(left, MOST_IN_LEGEND, fontsize="small")
    write_png(figure, path)


def _draw(axes: "Axes", rows: Sequence[Row], value: Value, by_law: Value) -> None:
    """Draw the measured values, and what the law says of them."""
    from matplotlib import colormaps

    lengths = {row.outcome.case.length for row in rows}
    sizes = sorted({row.outcome.case.hidden_size for row in rows})
    is_by_length = len(lengths) > 1
    for implementation in ("rnncls", "torch"):
        own = [row for row in rows if row.outcome.case.implementation == implementation]
        for number, hidden_size in enumerate(sizes):
            # From dark to light; the lightest would be too pale.
            colour = colormaps["viridis"](0.85 * number / max(1, len(sizes) - 1))
            line = [row for row in own if row.outcome.case.hidden_size == hidden_size]
            label = f"{implementation}, hidden {hidden_size:,}"
            if not is_by_length:
                if number > 0:
                    continue
                line = own
                label = implementation
            _draw_line(axes, line, value, by_law, label, colour, is_by_length)

    axes.set_xscale("log")
    axes.set_yscale("log")
    _name_ticks(axes)
    axes.set_xlabel("length (tokens)" if is_by_length else "hidden size")
    axes.grid(alpha=0.3)


def _name_ticks(axes: "Axes") -> None:
    """Write numbers at logarithmic axes, in place of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        # 1, 2, 5, 10, 20, ..., as long as there is room for them.
        steps = (1, 2, 5) if high < 300 * low else (1,)
        axis.set_major_locator(LogLocator(subs=steps))
        axis.set_major_formatter(FuncFormatter(_tick))
        axis.set_minor_formatter(NullFormatter())


def _tick(value: float, _position: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _draw_line(
    axes: "Axes",
    rows: Sequence[Row],
    value: Value,
    by_law: Value,
    label: str,
    colour: object,
    is_by_length: bool,
) -> None:
    cases = [row.outcome.case for row in rows]
    places = [case.length if is_by_length else case.hidden_size for case in cases]
    values = [_drawn(value(row)) for row in rows]
    if all(one != one for one in values):  # NaN: nothing was measured
        return

    is_stock = rows[0].outcome.case.implementation == "torch"
    axes.plot(
        places,
        values,
        label=label,
        color=colour,
        linestyle=":" if is_stock else "-",
        marker="x" if is_stock else "o",
        markersize=5,
    )
    if not is_stock:
        laws = [_drawn(by_law(row)) for row in rows]
        axes.plot(places, laws, color=colour, linestyle="--", linewidth=1, alpha=0.6)


def _drawn(value: float | None) -> float:
    """Return a value as it is drawn: NaN, which leaves a gap, where a logarithm has none."""
    return value if value else float("nan")


def _mebibytes(count: float | None) -> float | None:
    return None if count is None else count / 2**20
