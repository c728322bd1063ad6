"""Byte-pair encoding: words as parts that occur often, found in the words of the training split.

Each word begins with MARK, so that the parts of a text tell where its words began: "un" and "▁un"
are two parts. Parts never reach over the end of a word. The rules, in their order, stand in the
checkpoint; the package `tokenizers` finds and applies them.

R. Sennrich, B. Haddow, A. Birch: Neural Machine Translation of Rare Words with Subword Units, 2016.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain, groupby, repeat
from typing import Any

from rnncls.errors import CheckpointError, MachineError, Problem

MARK = "▁"  # U+2581, in front of each word

# Words given to the training, with those that occur again; of more, each counts in proportion.
MOST_WORDS = 2**22

# What is remembered of words that were taken apart: nearly all of a text are short and few.
MOST_REMEMBERED = 2**16
MOST_LETTERS_REMEMBERED = 64

# Parts of which texts are made to see whether another version takes them apart in the same way.
MOST_PARTS_TRIED = 2**14
_ODD_TEXTS = (
    "",
    "a",
    "naïve",
    "nai\u0308ve",
    "ß",
    "i\u0307",
    "東京都",
    "👩‍👩‍👧",
    "a\u00a0b",
    "x" * 500,
)


@dataclass(frozen=True)
class Subwords:
    """The rules by which words become parts.

    `parts` has each character and what two parts make together. `merges` are pairs of parts that
    become one, the first ones first. A word of `special` is a part as it is.
    """

    parts: frozenset[str]
    merges: tuple[tuple[str, str], ...]
    special: frozenset[str]
    version: str  # of the package by which `digest` was made
    digest: str = ""  # of how some texts are taken apart; see `digest_of`

    _remembered: dict[str, tuple[str, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def characters(self) -> frozenset[str]:
        """The characters that training has; others are parts that no rule is about."""
        return frozenset(part for part in self.parts if len(part) == 1)

    @cached_property
    def _program(self) -> Any:
        from tokenizers.models import BPE

        # Python's order of a set differs from process to process; the numbers mean nothing here.
        numbers = {part: number for number, part in enumerate(sorted(self.parts))}
        return BPE(vocab=numbers, merges=[*self.merges])

    def parts_of(self, words: Iterable[str]) -> list[str]:
        """Return the parts of words, end to end. A character that training lacks is a part."""
        remembered = self._remembered
        every: list[str] = []
        for word in words:
            parts = remembered.get(word)
            if parts is None:
                parts = (word,) if word in self.special else tuple(self._parts_of_word(MARK + word))
                if len(remembered) < MOST_REMEMBERED and len(word) <= MOST_LETTERS_REMEMBERED:
                    remembered[word] = parts
            every += parts
        return every

    def _parts_of_word(self, text: str) -> Iterator[str]:
        # Nearly every word. What is not known never reaches the package: it would leave it out.
        runs = [(True, text)]
        if not self.characters.issuperset(text):
            runs = _runs(text, self.characters)
        for is_known, run in runs:
            if is_known:
                yield from (token.value for token in self._program.tokenize(run))
            else:
                yield from run


def _runs(text: str, known: frozenset[str]) -> list[tuple[bool, str]]:
    """Return a text as stretches of known characters, and of others."""
    return [(is_known, "".join(run)) for is_known, run in groupby(text, known.__contains__)]


def require_package() -> str:
    """Return the version of `tokenizers`. Raises: MachineError if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise MachineError(
            Problem(
                "tokenizers is needed for subwords",
                "data.tokens",
                remedy="pip install 'rnncls[text]'",
                id="R38",
            )
        ) from None
    return str(tokenizers.__version__)


def train_subwords(counts: Mapping[str, int], size: int, special: Iterable[str] = ()) -> Subwords:
    """Return the parts of words that occur so often, at most `size` different ones.

    If there are more characters than that, the most frequent ones are known, and MARK. The result
    depends on the words and their counts alone.

    Raises: MachineError without the package.
    """
    version = require_package()
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    known = _frequent_characters(counts, size)
    whole = frozenset(known)
    total = sum(counts.values())
    given: list[tuple[str, int]] = []
    for word, count in counts.items():
        times = count if total <= MOST_WORDS else max(1, count * MOST_WORDS // total)
        given += [(run, times) for is_known, run in _runs(MARK + word, whole) if is_known]

    # Without its own choice of characters, which is at random among equally frequent ones.
    trainer = BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=known,
        limit_alphabet=len(known),
    )
    program = Tokenizer(BPE())
    with _in_one_thread():
        program.train_from_iterator(chain.from_iterable(repeat(*each) for each in given), trainer)

    rules = json.loads(program.to_str())["model"]
    merges = tuple((first, second) for first, second in rules["merges"])
    return subwords_of(frozenset(rules["vocab"]), merges, frozenset(special), version)


def subwords_of(
    parts: frozenset[str],
    merges: tuple[tuple[str, str], ...],
    special: frozenset[str],
    version: str,
) -> Subwords:
    """Return rules with the digest of what the installed package makes of them."""
    # What rules make is no token with a meaning of its own, whatever it looks like.
    rules = Subwords(parts, merges, special - parts, version)
    return replace(rules, digest=digest_of(rules))


def _frequent_characters(counts: Mapping[str, int], size: int) -> list[str]:
    """Return MARK and the most frequent characters, at most `size`; of equals, the first ones."""
    number: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            number[character] += count
    number.pop(MARK, None)
    ordered = sorted(number, key=lambda character: (-number[character], character))
    return [MARK, *ordered[: size - 1]]


@contextmanager
def _in_one_thread() -> Iterator[None]:
    """Keep the package from starting threads, after which a process should not fork."""
    key = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(key)
    os.environ[key] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def digest_of(subwords: Subwords) -> str:
    """Return a SHA-256 of how texts are taken apart by the installed package.

    The texts are made of the parts themselves, so that every rule is used: each part alone, with
    the next one behind it, and with one from further on; and some odd texts.
    """
    parts = [*sorted(subwords.characters), *(first + second for first, second in subwords.merges)]
    parts = parts[:MOST_PARTS_TRIED]
    texts = [*_ODD_TEXTS]
    for number, part in enumerate(parts):
        following = parts[(number + 1) % len(parts)]
        distant = parts[(7 * number + 3) % len(parts)]
        texts += (part, part + following, part + distant + part)

    # Not remembered: each of them is seen once.
    fresh = Subwords(subwords.parts, subwords.merges, frozenset(), "")
    digest = sha256()
    for text in texts:
        taken_apart = json.dumps([*fresh._parts_of_word(MARK + text)])
        digest.update(taken_apart.encode())
    return digest.hexdigest()


def require_same_parts(subwords: Subwords, where: str) -> None:
    """Refuse rules of a checkpoint that the installed package applies in another way.

    Raises: CheckpointError. MachineError without the package.
    """
    version = require_package()
    if version == subwords.version or digest_of(subwords) == subwords.digest:
        return
    raise CheckpointError(
        Problem(
            "another version of tokenizers takes words apart in another way",
            where,
            expected=f"tokenizers {subwords.version}, as in training",
            found=f"tokenizers {version}",
            remedy=f"pip install tokenizers=={subwords.version}",
            id="K24",
        )
    )


def text_of_parts(parts: Iterable[str], special: frozenset[str]) -> str:
    """Return parts as a person reads them: as words, between spaces."""
    pieces = (f" {part}" if part in special else part.replace(MARK, " ") for part in parts)
    return "".join(pieces).removeprefix(" ")
