"""The picture of the gradient through time."""

from pathlib import Path
from typing import TYPE_CHECKING

from rnncls.inspect.gradients.view import Gradients, LayerGradients
from rnncls.model.cells import DIRECTIONS, layer_name
from rnncls.model.gradient_flow import EXPLODING, VANISHING
from rnncls.system.pictures import add_legend, default_style, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IN_LEGEND = 12

# Bounds of the axis, as ratios: one of 1e-300 would flatten all that is above it.
LOWEST = 1e-20
HIGHEST = 1e20


@default_style()
def draw_gradients(gradients: Gradients, path: Path) -> None:
    """Draw the gradient at each distance from the end, as a share of the last step's, into a PNG.

    There is a line for each layer and direction, on a logarithmic axis with both thresholds.

    Raises: WriteError.
    """
    # Imported here because it takes long. A Figure without pyplot needs no display.
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("log")

    top = gradients.layers[-1].layer
    longest = len(gradients.layers[0].flow.norms)
    for one in gradients.layers:
        # From dark to light, from the lowest layer to the highest; the last ones would be too pale.
        colour = colormaps["viridis"](0.85 * one.layer / max(1, top))
        axes.plot(
            range(longest),
            _drawn(one),
            label=_label(one, gradients),
            color=colour,
            linestyle="--" if one.direction == "reverse" else "-",
            marker="." if longest <= 60 else None,
        )

    _draw_threshold(axes, VANISHING, "vanishing below")
    _draw_threshold(axes, EXPLODING, "exploding above")

    # Both thresholds are in the picture, and nothing that would flatten the rest.
    lowest, highest = axes.get_ylim()
    bottom = max(LOWEST, min(lowest, VANISHING / 10))
    axes.set_ylim(bottom, min(HIGHEST, max(highest, EXPLODING * 10)))
    if longest > 1:
        axes.set_xlim(-0.02 * longest, 1.02 * (longest - 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    what = gradients.meaning.split(".")[0]
    ratio = "|dL/dh| there / |dL/dh| at the last step"
    if gradients.pooling != "last":
        ratio = "|dL/dh| from the last state: there / at its own step"
    axes.set(
        xlabel="distance from the end of the sequence (time steps)",
        ylabel=f"{ratio} (no unit)",
        title=f"gradient through time: {what}",
    )
    axes.grid(alpha=0.3)
    add_legend(axes, MOST_IN_LEGEND, fontsize="small", loc="lower left")
    write_png(figure, path)


def _draw_threshold(axes: "Axes", threshold: float, name: str) -> None:
    """Draw a line across the picture, with its name at the right."""
    axes.axhline(threshold, color="tab:red", linestyle=":", linewidth=1.2)
    axes.annotate(
        f"{name} {threshold:.0e}",
        (1, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="tab:red",
        fontsize="small",
    )


def _drawn(layer: LayerGradients) -> list[float]:
    """Return the ratios, with NaN, which is not drawn, for what a logarithmic axis lacks."""
    ratios = layer.flow.ratios
    return ratios.where(ratios.isfinite() & (ratios > 0), float("nan")).tolist()


def _label(layer: LayerGradients, gradients: Gradients) -> str:
    direction = DIRECTIONS.index(layer.direction)
    name = layer_name(layer.layer, direction, 2 if gradients.has_two_directions else 1)
    return f"{name} (last step: {layer.flow.norms[0].item():.1e} nats per unit of h)"
