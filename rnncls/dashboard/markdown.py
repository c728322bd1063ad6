"""Tables of Markdown, which TensorBoard's text tab renders."""

from collections.abc import Sequence

# What is not text to Markdown, or would be a tag of HTML.
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]()#+!|<>&$~"})


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; every cell is shown as the text that it is."""
    lines = [_row(headings), _row(["---"] * len(headings), special=False)]
    lines += [_row(row) for row in rows]
    return "\n".join(lines)


def block(text: str) -> str:
    """Return a text as a block that is shown as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _row(cells: Sequence[object], special: bool = True) -> str:
    texts = [str(cell) for cell in cells]
    if special:
        texts = [" ".join(text.split()).translate(_SPECIAL) for text in texts]
    return f"| {' | '.join(texts)} |"
