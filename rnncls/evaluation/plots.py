"""The picture of an evaluation: which classes are taken for which others."""

from pathlib import Path

from rnncls.evaluation.mistakes import Confused
from rnncls.system.pictures import default_style, in_picture, write_png

MOST_OF_LABEL = 24  # characters of a label at an axis


@default_style()
def draw_confused(confused: Confused, path: Path) -> None:
    """Draw the classes that are confused into a PNG: counts, and errors as shares of each row.

    Raises: WriteError.
    """
    # Imported here because it takes long. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    # Cells of one size, so that a few classes make a small picture and many stay readable.
    num_classes = len(confused.classes)
    side = 2.5 + 0.5 * num_classes
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()

    # Only errors are coloured: what is right is most of a row, and would leave all else pale.
    shares = []
    for row, counts in enumerate(confused.counts):
        total = max(1, sum(counts))
        shares.append([0 if row == column else n / total for column, n in enumerate(counts)])
    highest = max(1e-9, *(share for row in shares for share in row))
    image = axes.imshow(shares, cmap="Oranges", vmin=0, vmax=highest)
    figure.colorbar(image, label="share of the row", shrink=0.8)

    for row, counts in enumerate(confused.counts):
        for column, count in enumerate(counts):
            # Dark cells have light numbers.
            colour = "white" if shares[row][column] > 0.6 * highest else "black"
            weight = "bold" if row == column else "normal"
            axes.text(
                column,
                row,
                _count(count),
                ha="center",
                va="center",
                color=colour,
                weight=weight,
                fontsize="small",
            )

    names = [in_picture(label, MOST_OF_LABEL) for label in confused.classes]
    places = range(num_classes)
    rotation = 90 if max(map(len, names)) > 5 else 0
    axes.set_xticks(places, names, rotation=rotation, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class", title="classes most often confused")

    write_png(figure, path)


def _count(count: int) -> str:
    """Return a count that fits into a cell."""
    if count >= 100_000:
        return f"{count / 1000:,.0f}k"
    return f"{count:,}" if count else ""
