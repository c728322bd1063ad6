"""At which length a model first goes wrong, of sequences that are read a few digits at a time.

States are carried from block to block, so memory does not depend on the length. A sequence that is
wrong once is not read any further.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from tqdm import tqdm

from rnncls.config import Config, SumModConfig
from rnncls.errors import ConfigError, Problem
from rnncls.evaluation.ways import compiled_stream
from rnncls.model.cells import State
from rnncls.model.classifier import RNNClassifier

# Sequences that are read together, and time steps that are read at a time. Changing either number
# changes which sequences are drawn.
TOGETHER = 128
BLOCK_STEPS = 64

# Logits that are in memory together: 64 MiB.
MOST_LOGITS = 2**24

# How each option is told to read on.
_LONGER = {
    "--structured": "a greater --structured-length",
    "--until-wrong": "a greater length",
}

NO_CLASS = -1  # in place of a class, where logits are not finite

# Gives the digits (BLOCK_STEPS, R) of the block with this number, from 0 on, of R sequences.
DigitsOf = Callable[[int], Tensor]

# Is told after each block how many digits it had, counting those that need not be read.
Told = Callable[[int], object]


class Stream(Protocol):
    """A model that reads some sequences a few tokens at a time."""

    def begin(self, count: int) -> None:
        """Put `count` sequences, at most TOGETHER, before their first token."""

    def classes(self, tokens: Tensor) -> Tensor:
        """Read tokens (T, R); return the class after each, (T, R), or NO_CLASS."""

    def keep(self, rows: Tensor) -> None:
        """Go on with the sequences that have these numbers, in this order."""


class TorchStream:
    """The model itself as a `Stream`, on its device. What comes back is on the CPU."""

    def __init__(self, model: RNNClassifier) -> None:
        self.model = model
        self.state: State | None = None

    def begin(self, count: int) -> None:
        tokens = PackedSequence(torch.zeros(count, dtype=torch.int64), torch.tensor([count]))
        self.state = self.model.start_state(tokens)

    def classes(self, tokens: Tensor) -> Tensor:
        steps, count = tokens.shape
        rows = (tokens.reshape(-1).to(self.model.device),)
        sizes = torch.full((steps,), count)
        outputs, self.state = self.model.run(rows, sizes, self.state)

        most = max(1, MOST_LOGITS // self.model.head.out_features)
        parts = []
        for part in torch.split(outputs, most):
            largest, best = self.model.head(part).max(1)
            parts.append(best.masked_fill(~largest.isfinite(), NO_CLASS).cpu())
        return torch.cat(parts).view(steps, count)

    def keep(self, rows: Tensor) -> None:
        if self.state is not None:
            chosen = rows.to(self.model.device)
            self.state = tuple(part.index_select(1, chosen) for part in self.state)


def require_stream(config: Config, option: str, longest: int, setting: str = "") -> SumModConfig:
    """Return the data section of a config whose sequences can be read a few digits at a time.

    Raises: ConfigError, which names `option` and the `setting` of a sweep, for data that is not
    generated, for a model whose answer needs the whole sequence, and where `longest` is below the
    lengths that are looked at.
    """
    where = f"{option}, {setting}" if setting else option
    if not isinstance(config.data, SumModConfig):
        what = "sequences of digits are generated for data.source: sum_mod only"
        remedy = "leave it out: a file is evaluated as a whole"
        raise ConfigError(Problem(what, where, remedy=remedy, id="C17"))

    model = config.model
    needed = {
        "model.cell: none": (model.cell == "none", "model.cell: rnn, lstm or gru"),
        "model.skip: true": (model.skip, "model.skip: false"),
        "model.bidirectional: true": (model.bidirectional, "model.bidirectional: false"),
        f"model.pooling: {model.pooling}": (model.pooling != "last", "model.pooling: last"),
        f"model.ngrams: {[*model.ngrams]}": (bool(model.ngrams), "model.ngrams: []"),
        f"model.positions: {model.positions}": (model.positions != "none", "model.positions: none"),
    }
    for found, (is_whole, wanted) in needed.items():
        if is_whole:
            what = "an answer after each digit, of a model that needs the whole sequence"
            expected = f"a run with {wanted}"
            remedy = "--lengths, which evaluates whole sequences"
            raise ConfigError(
                Problem(what, where, expected=expected, found=found, remedy=remedy, id="C17")
            )

    shortest = config.data.min_length
    if longest < shortest:
        raise ConfigError(
            Problem(
                "no length to look at: the shortest is that of training",
                where,
                expected=f"at least data.min_length = {shortest:,}",
                found=f"{longest:,}",
                remedy=_LONGER[option],
                id="C17",
            )
        )
    return config.data


@contextmanager
def reading(
    model: RNNClassifier, num_tokens: int, progress: bool, check: Callable[[], object] | None
) -> Iterator[tuple[Stream, Told]]:
    """Give a model as a stream of so many tokens in all, and what is to be told of those read.

    The stream is compiled where that is faster. `progress` shows a bar on stderr if that is a
    terminal, `check` is called after each block. Afterwards the model is in the mode of before.
    """
    stream = compiled_stream(model, num_tokens) or TorchStream(model)
    is_hidden = None if progress else True
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=num_tokens, unit="digit", unit_scale=True, disable=is_hidden) as bar:

            def told(digits: int) -> None:
                bar.update(digits)
                if check is not None:
                    check()

            yield stream, told
    finally:
        model.train(was_training)


@torch.inference_mode()
def first_errors(
    stream: Stream,
    data: SumModConfig,
    digits_of: DigitsOf,
    count: int,
    longest: int,
    told: Told,
) -> list[int | None]:
    """Return at which length each of `count` sequences is first wrong; None: right up to `longest`.

    Every length from the shortest training length on is looked at. An answer without finite logits
    is wrong.
    """
    firsts = torch.zeros(count, dtype=torch.int64)
    rows = torch.arange(count)
    sums = torch.zeros(count, dtype=torch.int64)
    stream.begin(count)
    for begin in range(0, longest, BLOCK_STEPS):
        if not len(rows):
            told((longest - begin) * count)
            break
        steps = min(BLOCK_STEPS, longest - begin)
        digits = digits_of(begin // BLOCK_STEPS)[:steps, rows]  # (T, R)
        labels = (sums + digits.cumsum(0)) % data.modulus
        is_wrong = stream.classes(digits) != labels
        is_wrong[: max(0, data.min_length - 1 - begin)] = False

        # Of equal numbers, argmax takes the first.
        ended = is_wrong.any(0)
        firsts[rows[ended]] = begin + 1 + is_wrong[:, ended].int().argmax(0)
        going = (~ended).nonzero().squeeze(1)
        if len(going) < len(rows):
            stream.keep(going)
        rows = rows[going]
        sums = labels[-1, going]
        told(steps * count)
    return [first or None for first in firsts.tolist()]
