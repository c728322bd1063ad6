"""Maps the tokens and labels of the user's data to numbers."""

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import TypeVar

from rnncls.config import FilesConfig
from rnncls.data.subwords import Subwords
from rnncls.errors import Problem

UNKNOWN = "<unk>"
UNKNOWN_ID = 0  # in a vocabulary that has it
END = "<end>"  # behind each sequence, with data.end_token

# Not more than 18 digits, which fit into 64 bits; longer ones are text like any other.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")

# The tokens of a sequence, or their ids.
Tokens = TypeVar("Tokens", list[str], "array[int]")


@dataclass(frozen=True)
class Vocabulary:
    """Knows the meaning of ids and class numbers. Built from training data, kept by checkpoints.

    The id of a token is its position in `tokens`. With `has_unknown`, id 0 is `<unk>` and stands
    for every token that `tokens` lacks. With `subwords`, tokens are parts of words.
    """

    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    has_unknown: bool
    subwords: Subwords | None = None
    index: dict[str, int] = field(init=False, repr=False, compare=False)  # id of each token

    def __post_init__(self) -> None:
        # A frozen dataclass refuses a plain assignment, even here.
        index = {token: number for number, token in enumerate(self.tokens)}
        object.__setattr__(self, "index", index)

    @property
    def num_embeddings(self) -> int:
        return len(self.tokens)

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of tokens.

        Raises: KeyError, naming the token, for an unknown one without `has_unknown`.
        """
        # `map` over the methods of a dict is the fastest way.
        if self.has_unknown:
            return list(map(self.index.get, tokens, repeat(UNKNOWN_ID)))
        return list(map(self.index.__getitem__, tokens))


def truncate(tokens: Tokens, data: FilesConfig) -> Tokens | Problem:
    """Return the tokens of a sequence that `data.max_length` and `data.truncate` leave.

    With `truncate: error`, return a Problem for a sequence that is too long.
    """
    limit = data.max_length
    if limit is None or len(tokens) <= limit:
        return tokens

    if data.truncate == "error":
        return too_long(limit, len(tokens))
    return cut(tokens, data)


def too_long(limit: int, length: int) -> Problem:
    """Return the problem of a sequence of more tokens than `data.max_length` allows."""
    return Problem(
        "a long sequence",
        expected=f"at most data.max_length = {limit} tokens",
        found=f"{length}",
        remedy="data.truncate=head or tail",
        id="D16",
    )


def cut(tokens: Tokens, data: FilesConfig) -> Tokens:
    """Return what truncation leaves of a sequence's tokens, or of a list of something for each."""
    limit = data.max_length
    if limit is None:
        return tokens
    return tokens[-limit:] if data.truncate == "tail" else tokens[:limit]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names sorted: as numbers if all of them are integers, else as text."""
    # As text, 10 would come before 9. One name that is not an integer makes all of them text.
    listed = list(names)
    if are_integers(listed):
        return tuple(sorted(listed, key=int))
    return tuple(sorted(listed))


def are_integers(names: Sequence[str]) -> bool:
    """Return whether every name is an integer in its usual notation: "7" is, "007" is not."""
    return all(_INTEGER.fullmatch(name) for name in names)
