"""Tokens and labels of the user's data, and their numbers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

UNKNOWN = "<unk>"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Vocabulary:
    """What the numbers in the tensors mean. Built from training data alone; a checkpoint keeps it.

    The id of a token is its place in `tokens`. With `has_unknown`, id 0 is `<unk>`, for all tokens that are not there.
    """

    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    has_unknown: bool
    index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "index", {token: number for number, token in enumerate(self.tokens)}
        )

    @property
    def num_embeddings(self) -> int:
        return len(self.tokens)

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """The ids of some tokens. Raises KeyError, naming the token, for an unknown one without `has_unknown`."""
        if self.has_unknown:
            return [self.index.get(token, 0) for token in tokens]
        return [self.index[token] for token in tokens]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted, as numbers where all of them are."""
    listed = list(names)
    return tuple(sorted(listed, key=int) if are_integers(listed) else sorted(listed))


def are_integers(names: Sequence[str]) -> bool:
    """Whether every name is how an integer is written."""
    return all(map(_INTEGER.fullmatch, names))
