"""Word vectors that were trained elsewhere, from files in the text formats of GloVe and word2vec.

Each line is a word and its numbers, with single spaces between them. word2vec's begins with a line
of two whole numbers: how many words there are, and how many numbers each has.
"""

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.lines import lines_of
from rnncls.data.files.opening import opened
from rnncls.data.table import Array, progress_bar
from rnncls.errors import DataError, Problem
from rnncls.system.shown import counted
from rnncls.system.streams import say

_FORMAT = "the text format of GloVe or word2vec: a word and its numbers in each line"
_NOT_BINARY = "the text format, in UTF-8: word2vec's binary one is not read"
_WHOLE_FILE = "the whole file once more: this one may be cut off"


class Vectors(NamedTuple):
    """The word vectors of a vocabulary of V tokens."""

    found: Tensor  # (V,) bool: which tokens have one
    values: Tensor  # (V, width) float32; zeros where a token has none


class _Kept(NamedTuple):
    """What was read last, and of what."""

    key: tuple[object, ...]
    vectors: Vectors


# The members of a sweep, and the models of one check, share the vectors that were read last.
_LOCK = threading.Lock()
_kept: list[_Kept] = []


def vectors_of(path: str, tokens: tuple[str, ...], width: int, counts: Tensor) -> Vectors:
    """Return the vectors that a file has for the tokens of a vocabulary.

    `counts`: how often each token occurs in the training data, (V,). Says on stderr how many have a
    vector. A file that was read last, and is the same since, is not read again.

    Raises: DataError as `read_vectors` does.
    """
    with _LOCK:
        key = (path, _identity(path), width, tokens)
        if _kept and _kept[0].key == key:
            return _kept[0].vectors
        # What is kept from before need not be in memory at the same time.
        _kept.clear()
        vectors = read_vectors(path, tokens, width, progress=True)
        say(described(vectors, path, counts))
        _kept.append(_Kept(key, vectors))
        return vectors


def _identity(path: str) -> tuple[int, ...]:
    """Return what tells a file from what it was before; () if it cannot be looked at."""
    # Whoever opens it says that better.
    try:
        found = os.stat(path)  # noqa: PTH116  # a path may have a NUL
    except (OSError, ValueError):
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def described(vectors: Vectors, path: str, counts: Tensor) -> str:
    """Return how many tokens of a vocabulary have a vector, in one line."""
    found = int(vectors.found.sum())
    share = float(counts[vectors.found].sum()) / max(1, int(counts.sum()))
    return (
        f"{found:,} of {len(vectors.found):,} tokens of the vocabulary ({100 * share:.1f} % of the "
        f"training tokens) have a vector in {path}; the others begin as they would without"
    )


def read_vectors(path: str, tokens: tuple[str, ...], width: int, progress: bool = False) -> Vectors:
    """Read the vectors, of `width` numbers, that a file has for these tokens.

    A token has the vector of the same word, or else that of its lower-case form. Of a word that is
    there twice, the first one counts. The file is read once, and only what is wanted is kept.

    Raises: DataError for a file that cannot be read, or is none of vectors of this width, with the
    line; and if it has a vector for none of the tokens.
    """
    wanted = _Wanted(tokens, width)
    count = 0
    for line, word, text in _lines_of_words(path, width, progress):
        count += 1
        if wanted.has_use_for(word):
            wanted.add(word, _numbers_in(path, line, text.rsplit(" ", width)[1:]))
    if not wanted.kinds.any():
        raise _nothing_found(path, tokens, count)
    return Vectors(torch.from_numpy(wanted.kinds > 0), torch.from_numpy(wanted.values))


class _Wanted:
    """The tokens that want a vector, with those that were found so far."""

    def __init__(self, tokens: tuple[str, ...], width: int) -> None:
        self.numbers = {token: number for number, token in enumerate(tokens)}
        # The tokens that have capital letters, by their lower-case form.
        self.lowered: dict[str, list[int]] = {}
        for token, number in self.numbers.items():
            if token.lower() != token:
                self.lowered.setdefault(token.lower(), []).append(number)

        self.values = np.zeros((len(tokens), width), dtype=np.float32)
        # 2 where a token has the vector of the same word, 1 where of its lower-case form.
        self.kinds = np.zeros(len(tokens), dtype=np.int8)

    def has_use_for(self, word: str) -> bool:
        """Return whether a token wants the vector of this word that has none, or a worse one."""
        number = self.numbers.get(word)
        if number is not None and self.kinds[number] < 2:
            return True
        return any(not self.kinds[other] for other in self.lowered.get(word, ()))

    def add(self, word: str, vector: Array) -> None:
        """Give the tokens that want it the vector (width,) of a word."""
        for other in self.lowered.get(word, ()):
            if not self.kinds[other]:
                self.values[other] = vector
                self.kinds[other] = 1
        number = self.numbers.get(word)
        if number is not None and self.kinds[number] < 2:
            self.values[number] = vector
            self.kinds[number] = 2


@contextmanager
def _opened(path: str) -> Iterator[io.BufferedReader]:
    """Open the file. Raises: DataError, which names the key of the config."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(opened(path))
        except DataError as error:
            problems = [replace(each, remedy="model.embeddings=FILE") for each in error.problems]
            raise DataError(*problems) from None
        yield file


def _lines_of_words(path: str, width: int, progress: bool) -> Iterator[tuple[int, str, str]]:
    """Yield (number of the line, word, the line) for each line with a word and its vector.

    Raises: DataError for a line that is too short, and if the file has fewer than its first line
    says.
    """
    num_words = 0  # that line 1 says there are
    count = 0
    with progress_bar((path,), progress) as bar, _opened(path) as file:
        for line, text in lines_of(path, file, _Refusing(path), bar.update):
            # word2vec's own program writes a space behind the last number.
            text = text.replace("\t", " ").rstrip(" ")
            if not text:
                continue
            if line == 1:
                header = _words_in_header(text)
                _require_width(path, text, width, header is not None)
                if header is not None:
                    num_words = header
                    continue

            count += 1
            spaces = text.count(" ")
            if spaces < width:
                raise _short_row(path, line, spaces, width)
            # A word may have spaces: the numbers are the last fields.
            word = text[: text.index(" ")] if spaces == width else text.rsplit(" ", width)[0]
            yield line, word, text

    if count < num_words:
        expected = f"{num_words:,} words, as line 1 says"
        raise _damaged(path, "the file of vectors ends early", expected, f"{count:,}", _WHOLE_FILE)


class _Refusing(BadRows):
    """Raises DataError for the first line that is no text, or too long."""

    def add_problem(self, line: int, problem: Problem) -> None:
        # The keys of the data section do not say how vectors are read.
        remedy = _NOT_BINARY
        if line > 2:
            remedy = "a file in UTF-8; iconv -c -f utf-8 -t utf-8 leaves out what is none"
        raise DataError(replace(problem, where=f"{self.path}:{line}", remedy=remedy))


def _words_in_header(text: str) -> int | None:
    """Return how many words a file's first line says that there are; None if it is no header."""
    fields = text.split(" ")
    is_header = len(fields) == 2 and all(field.isascii() and field.isdecimal() for field in fields)
    return int(fields[0]) if is_header else None


def _require_width(path: str, text: str, width: int, is_header: bool) -> None:
    """Raise DataError unless the first line of a file says, or has, `width` numbers."""
    fields = text.split(" ")
    found = int(fields[1]) if is_header else _count_numbers(fields[1:])
    # A field that is no number, or a word of several parts, says nothing about the width.
    if not is_header and (len(fields) == width + 1 or _ends_in_text(fields, width)):
        return
    if found == width:
        return
    remedy = f"model.embedding_dim={found}" if found else _FORMAT
    raise _damaged(
        f"{path}:1",
        "vectors of another width",
        f"{counted(width, 'number')}, which is model.embedding_dim",
        counted(found, "number"),
        remedy,
    )


def _count_numbers(fields: list[str]) -> int:
    """Return how many fields at the end are numbers."""
    for count, field in enumerate(reversed(fields)):
        if math.isnan(_number(field, math.nan)) and field.lower() not in ("nan", "-nan"):
            return count
    return len(fields)


def _ends_in_text(fields: list[str], width: int) -> bool:
    """Return whether a word of several parts stands before the last `width` fields."""
    is_text = any(math.isnan(_number(field, math.nan)) for field in fields[1:-width])
    return is_text and _count_numbers(fields[1:]) >= width


def _number(field: str, otherwise: float) -> float:
    try:
        return float(field)
    except ValueError:
        return otherwise


def _numbers_in(path: str, line: int, fields: list[str]) -> Array:
    """Return the numbers of a line, float32. Raises: DataError if one is none, or not finite."""
    try:
        with np.errstate(over="ignore"):
            vector: Array = np.array(list(map(float, fields))).astype(np.float32)
    except ValueError:
        wrong = next(field for field in fields if _number(field, math.inf) == math.inf)
        raise _bad_number(path, line, wrong, len(fields)) from None
    finite = np.isfinite(vector)
    if not finite.all():
        wrong = fields[int(np.argmin(finite))]
        raise _bad_number(path, line, wrong, len(fields))
    return vector


def _bad_number(path: str, line: int, field: str, width: int) -> DataError:
    what = "a vector with something that is no finite number"
    expected = f"a word and {counted(width, 'number')}, with single spaces between them"
    return _damaged(f"{path}:{line}", what, expected, repr(field), "fix or remove the line")


def _short_row(path: str, line: int, found: int, width: int) -> DataError:
    what = "a short vector"
    expected = f"a word and {counted(width, 'number')}, with single spaces between them"
    return _damaged(f"{path}:{line}", what, expected, counted(found, "number"), _WHOLE_FILE)


def _damaged(where: str, what: str, expected: str, found: str, remedy: str) -> DataError:
    return DataError(Problem(what, where, expected=expected, found=found, remedy=remedy, id="D28"))


def _nothing_found(path: str, tokens: tuple[str, ...], count: int) -> DataError:
    return DataError(
        Problem(
            "no token of the vocabulary has a vector in the file",
            path,
            expected="words such as the tokens of the training data",
            found=f"{count:,} words, and {len(tokens):,} other tokens such as {tokens[-1]!r}",
            remedy="vectors of the same language and unit; or data.tokens=words",
            id="D29",
        )
    )
