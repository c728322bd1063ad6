"""The smallest network, worked through by hand."""

from typing import Any, NamedTuple


class Demo(NamedTuple):
    """Every number of it."""

    def to_text(self) -> str:
        """Return the steps as a person reads them."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        raise NotImplementedError


def demo() -> Demo:
    """Run the smallest network."""
    raise NotImplementedError
