"""What all pictures have in common: how text stands in them, and how they are rendered."""

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnncls.system.refusals import write_whole
from rnncls.system.shown import on_short_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Drawing:
    """Which thread draws, and whether it has set the style."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.is_entered = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_drawing = _Drawing()


@contextmanager
def default_style() -> Iterator[None]:
    """Draw with the default settings of matplotlib, whatever the user's own ones say.

    It reads a `matplotlibrc` in the current folder, too, which may be a stranger's: texts could go
    through LaTeX, where they are programs.

    The settings belong to the process, so that one thread draws at a time. Within the context, it
    may be entered again at no cost.
    """
    from matplotlib import style

    with _drawing:
        if _drawing.is_entered:
            yield
            return
        _drawing.is_entered = True
        try:
            with style.context("default"):
                yield
        finally:
            _drawing.is_entered = False


def in_picture(text: str, most: int) -> str:
    """Return a label or a value as it stands in a picture: at most `most` characters of one line.

    It must be drawn with `parse_math=False`: it is text, even if it looks like a formula, and half
    a formula is an error.
    """
    return on_short_line(text, most)


def add_legend(axes: "Axes", most: int, **options: Any) -> None:
    """Add a legend that shows the labels as they are, the first `most` of them.

    It has "..." in place of the others.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > most:
        # An invisible line of no points stands beside the dots.
        handles = [*handles[:most], axes.plot([], [], alpha=0)[0]]
        labels = [*labels[:most], f"... and {len(labels) - most:,} more"]

    # `axes.legend` itself has no `parse_math`.
    for text in axes.legend(handles, labels, **options).get_texts():
        text.set_parse_math(False)


def png_of(figure: "Figure") -> bytes:
    """Return the picture as a PNG: in memory, so that a file appears whole or not at all."""
    content = io.BytesIO()
    with any_script():
        figure.savefig(content, dpi=120, format="png")
    return content.getvalue()


def rendered(figure: "Figure") -> tuple[bytes, int, int]:
    """Return the picture as a PNG with its height and width, in pixels, rendered only once.

    It is compressed lightly: there are many such pictures, and compressing well takes longer than
    drawing does.
    """
    content = io.BytesIO()
    with default_style(), any_script():
        figure.savefig(content, dpi=120, format="png", pil_kwargs={"compress_level": 1})
    png = content.getvalue()

    # The first chunk of a PNG, behind 16 bytes, begins with its width and its height.
    width, height = struct.unpack_from(">II", png, 16)
    return png, height, width


def write_png(figure: "Figure", path: Path) -> None:
    """Write the picture as a PNG, whole or not at all. Raises: WriteError."""
    write_whole(path, png_of(figure))


@contextmanager
def any_script() -> Iterator[None]:
    """Silence the warnings about characters that the font lacks: a box stands for each of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield
