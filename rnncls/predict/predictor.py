"""Load a run, and predict the labels of sequences with it.

    predictor = load("runs/mine")
    predictor.predict(["home shop pay", ["home", "cart"]])

`rnncls predict` takes its numbers from here as well: reading.py reads the sequences that it is
given, and writing.py writes what was predicted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncls.config import Config, FilesConfig
from rnncls.data import Vocabulary
from rnncls.data.cells import TokenRule, rule_of, sequence_of, tokens_of
from rnncls.data.sequences import cut_for_evaluation
from rnncls.data.vocabulary import END, are_integers, truncate
from rnncls.errors import DataError, NonFiniteError, Problem
from rnncls.evaluation.ways import LONGEST, compiled_model
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.logits import likeliest, logits_of
from rnncls.predict.long_sequences import too_long_for
from rnncls.predict.prefixes import Prefixes, prefixes_of, require_prefixes
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.checkpoint_files import load_checkpoint

if TYPE_CHECKING:
    from rnncls.evaluation.compiled import CompiledModel

MOST_TOKENS_SHOWN = 12  # in a message about an unknown one

# Sequences that are sorted by length together; predictions keep the given order. It bounds what is
# in memory.
CHUNK = 4096

# Of a text of ids or words, about so many characters are one token. Before a file is read, only its
# size is known.
CHARACTERS_OF_TOKEN = 4

# An int where all labels of a run are integers, as in its files; else text.
Label = str | int

# Text, or the tokens themselves. An array or a tensor of ids has one dimension. A row of several
# fields that make a sequence is a mapping.
Item = str | Sequence[str] | Sequence[int] | Tensor | np.ndarray[Any, Any] | Mapping[str, Any]

_SHAPES_OF_ITEMS = {
    "ids": 'a text such as "3 1 4", a list of integers, or a 1-d tensor or array of them',
    "words": "a text, or a list of words",
    "characters": "a text, or a list of characters",
    "subwords": "a text, or a list of words",
}


class Prediction(NamedTuple):
    """The likeliest label of one sequence, its probability, and the `top_k` likeliest labels."""

    label: Label
    probability: float
    top: list[tuple[Label, float]]  # best first; the first is `label` with `probability`


@dataclass(frozen=True, eq=False, repr=False)
class Predictor:
    """A trained model with the meaning of its inputs and outputs. Made by `rnncls.load`."""

    network: RNNClassifier  # in evaluation mode
    vocabulary: Vocabulary
    labels: tuple[Label, ...]  # by class number: logits[:, i] belongs to labels[i]
    config: Config
    checkpoint: Path  # the file that was read
    step: int  # training steps behind the checkpoint
    data: FilesConfig  # how sequences are read: kind of tokens, length, names of fields
    compiled: "CompiledModel | None" = None  # the network, where many sequences are predicted

    def __repr__(self) -> str:
        tokens = self.vocabulary.num_embeddings
        sizes = f"{tokens:,} tokens, {len(self.labels):,} labels"
        return f"Predictor({self.checkpoint}, step {self.step:,}, {sizes})"

    @cached_property
    def rule(self) -> TokenRule:
        """How the text of a sequence becomes tokens."""
        return rule_of(self.data)

    def predict(self, items: Iterable[Item], top_k: int = 1) -> list[Prediction]:
        """Return a prediction for each sequence, in their order, with the `top_k` likeliest labels.

        A sequence is text, as `rnncls predict` takes it, or a list of its tokens; ids may also be a
        tensor or an array (length,). Where several fields make a sequence, a dict is a row with
        them. There may be any number of sequences, and the probabilities are those of
        `rnncls predict`. They do not depend on what is predicted beside a sequence, but for
        rounding: a list or tuple of very many is predicted by the compiled program.

        Raises: DataError for an item that is no sequence, is empty, or has a token that the model
        does not know and has no `<unk>` for; it names the item. NonFiniteError if the model's
        weights have become NaN. ValueError for a top_k below 1.
        """
        predictor = for_many(self, _num_characters(self, items))
        predictions: list[Prediction] = []
        for ids in _chunks_of_items(predictor, items, top_k):
            predictions += predict_ids(predictor, ids, top_k)
        return predictions

    def predict_prefixes(self, items: Iterable[Item], top_k: int = 1) -> list[list[Prediction]]:
        """Return, for each sequence, a prediction after each of its tokens.

        Each prediction is that of the prefix that ends with the token, so the last one is that of
        `predict`. Of a sequence that is truncated as in training, the tokens are those that are
        left. Sequences are those of `predict`; all predictions are in memory together.

        Raises: ConfigError for a model of two directions, or of another pooling than last, which
        needs the whole sequence. Else as `predict`.
        """
        require_prefixes(self.network, "predict_prefixes")
        predictions: list[list[Prediction]] = []
        for ids in _chunks_of_items(self, items, top_k):
            for parts in predict_prefixes_of_ids(self, ids, top_k):
                predictions.append([one for part in parts for one in predictions_of(self, *part)])
        return predictions


def load(path: str | Path, device: str | None = None) -> Predictor:
    """Load a checkpoint file, or the best checkpoint of a run directory, to predict with it.

    `device`: auto, cpu, cuda or cuda:INDEX; by default that of the run's config.

    Raises: CheckpointError if there is no checkpoint, or it is damaged. MachineError without the
    device.
    """
    return predictor_of(*load_checkpoint(path, device))


def predictor_of(checkpoint: Checkpoint, network: RNNClassifier) -> Predictor:
    """Return the predictor of a checkpoint, whose network is that of `load_checkpoint`."""
    vocabulary = checkpoint.vocabulary or _numbers(checkpoint)
    labels: tuple[Label, ...] = vocabulary.labels
    if are_integers(vocabulary.labels):
        labels = tuple(map(int, vocabulary.labels))

    # A model of the generated task reads ids, as one of files with tokens=ids does.
    data = checkpoint.config.data
    if not isinstance(data, FilesConfig):
        data = FilesConfig(source="files", train="none", tokens="ids", unknown="error")

    step = checkpoint.state.step
    config = checkpoint.config
    return Predictor(network, vocabulary, labels, config, checkpoint.path, step, data)


def load_model(path: str | Path) -> RNNClassifier:
    """Return the network of `load(path)` alone, on the CPU and in evaluation mode.

    Raises: CheckpointError, MachineError.
    """
    return load(path, device="cpu").network


def _numbers(checkpoint: Checkpoint) -> Vocabulary:
    """Return the vocabulary of generated data, whose tokens and labels are numbers."""
    num_tokens, num_classes = checkpoint.sizes
    tokens = tuple(map(str, range(num_tokens)))
    labels = tuple(map(str, range(num_classes)))
    return Vocabulary(tokens, labels, has_unknown=False)


def for_many(predictor: Predictor, num_characters: int) -> Predictor:
    """Return the predictor for sequences of so many characters in all, as a text or a file has.

    For many of them, the network is compiled where it can be.
    """
    num_tokens = num_characters
    if predictor.data.tokens != "characters":
        num_tokens //= CHARACTERS_OF_TOKEN
    return replace(predictor, compiled=compiled_model(predictor.network, num_tokens))


def _num_characters(predictor: Predictor, items: Iterable[Item]) -> int:
    """Return about how long a text of all items would be; 0 where they are not all there yet."""
    if not isinstance(items, list | tuple):
        return 0
    of_token = 1 if predictor.data.tokens == "characters" else CHARACTERS_OF_TOKEN
    size = 0
    for item in items:
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, Mapping):
            size += sum(len(value) for value in item.values() if isinstance(value, str))
        # What is no sequence is refused later.
        elif isinstance(item, Sequence) or getattr(item, "ndim", 0) == 1:
            size += of_token * len(item)
    return size


def encode(predictor: Predictor, value: Any) -> list[int] | Problem:
    """Return the ids of a sequence as a file holds it, truncated as in training, or the problem.

    `value` is text or a list of tokens. A problem has no remedy: that depends on where it is.
    """
    read = read_tokens(predictor, value)
    return read if isinstance(read, Problem) else read.ids


class ReadTokens(NamedTuple):
    """A sequence as the model sees it, T tokens."""

    ids: list[int]
    # As they were given but for data.lowercase, also those that the model does not know.
    names: list[str]
    num_left_out: int  # how many tokens more there were, before the sequence was truncated


def read_tokens(predictor: Predictor, value: Any) -> ReadTokens | Problem:
    """Return the tokens of a sequence and their ids, or the problem, as `encode`."""
    tokens = split_into_tokens(predictor, value)
    if isinstance(tokens, Problem):
        return replace(tokens, remedy="")
    if not tokens:
        return Problem("an empty sequence", expected="at least one token", id="D9")

    kept = truncate(tokens, predictor.data)
    if isinstance(kept, Problem):
        return replace(kept, remedy="")
    num_left_out = len(tokens) - len(kept)
    if predictor.data.end_token:
        kept = [*kept, END]
    too_long = too_long_for(predictor.network, len(kept))
    if too_long is not None:
        return too_long

    # With <unk> in the vocabulary there is no KeyError.
    try:
        ids = predictor.vocabulary.encode(kept)
    except KeyError as error:
        return _unknown_token(predictor.vocabulary, tokens, error.args[0])
    return ReadTokens(ids, kept, num_left_out)


def split_into_tokens(predictor: Predictor, value: Any) -> list[str] | Problem:
    """Return all tokens of a sequence, as training has them before it truncates."""
    tokens = tokens_of(value, predictor.rule)
    subwords = predictor.vocabulary.subwords
    if subwords is None or isinstance(tokens, Problem):
        return tokens
    return subwords.parts_of(tokens)


def no_sequence(row: Mapping[str, Any], names: tuple[str, ...]) -> Problem:
    """Return the problem of a row without the fields that are read, or with null in them."""
    wanted = " or ".join(f'"{name}"' for name in names)
    if any(name in row for name in names):
        found = "null"
    else:
        found = f"the fields {', '.join(map(str, row))}" if row else "no fields"
    expected = f"a list or a text in {wanted}, as in the training data"
    return Problem("no sequence", expected=expected, found=found, id="D14")


def unknown_tokens(predictor: Predictor, text: str) -> list[str]:
    """Return the tokens of a good sequence, as a person types it, that became `<unk>`."""
    tokens = split_into_tokens(predictor, text)
    known = predictor.vocabulary.index
    return [] if isinstance(tokens, Problem) else [token for token in tokens if token not in known]


def _unknown_token(vocabulary: Vocabulary, tokens: list[str], token: str) -> Problem:
    return Problem(
        "a token unknown to the model",
        expected=_known_tokens(vocabulary.tokens),
        found=f"{token!r:.60} at position {tokens.index(token) + 1}",
        id="D7",
    )


def _known_tokens(tokens: tuple[str, ...]) -> str:
    """Return which tokens a model knows: a range of integers, or the first ones."""
    tokens = tuple(token for token in tokens if token != END)
    if are_integers(tokens):
        numbers = sorted(map(int, tokens))
        if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1:
            return f"integers in {numbers[0]}..{numbers[-1]}"

    shown = list(tokens[:MOST_TOKENS_SHOWN])
    if len(tokens) > MOST_TOKENS_SHOWN:
        shown.append("...")
    return ", ".join(shown)


def _chunks_of_items(
    predictor: Predictor, items: Iterable[Item], top_k: int
) -> Iterator[list[list[int]]]:
    """Yield the ids of the items of `predict`, CHUNK at a time. Raises: as `predict`."""
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    _require_items(items)

    numbered = enumerate(items)
    while chunk := list(islice(numbered, CHUNK)):
        yield [_ids_of(predictor, item, number) for number, item in chunk]


def _require_items(items: Any) -> None:
    """Raise DataError unless `items` can be a number of sequences."""
    is_many = isinstance(items, Iterable) and not isinstance(items, str | bytes | Mapping)
    if is_many:
        return
    raise DataError(
        Problem(
            "not a list of sequences",
            "items",
            expected="a list, or another iterable, of sequences",
            found=_described(items),
            remedy="predict([text])" if isinstance(items, str) else "",
            id="D14",
        )
    )


def _ids_of(predictor: Predictor, item: Any, number: int) -> list[int]:
    """Return the ids of one of the items of `predict`. Raises: DataError, naming the item."""
    if isinstance(item, str):
        ids = encode(predictor, item)
    elif isinstance(item, Mapping) and len(predictor.data.sequence_fields) > 1:
        names = predictor.data.sequence_fields
        value = sequence_of(dict(item), names)
        ids = no_sequence(item, names) if value is None else encode(predictor, value)
    elif (tokens := _tokens_of_item(item)) is not None:
        ids = encode(predictor, tokens)
    else:
        ids = _not_a_sequence(predictor, item)

    if isinstance(ids, Problem):
        raise DataError(replace(ids, where=f"items[{number}]"))
    return ids


def _tokens_of_item(item: Any) -> list[Any] | None:
    """Return the tokens in a list or another sequence, a tensor or an array; else None."""
    if isinstance(item, Tensor | np.ndarray):
        return item.tolist() if item.ndim == 1 else None
    # Bytes are a sequence of integers to Python, and a text that was not decoded to people.
    if isinstance(item, Sequence) and not isinstance(item, bytes | bytearray | memoryview):
        # NumPy's own integers and texts are not those of Python.
        return [value.item() if isinstance(value, np.generic) else value for value in item]
    return None


def _not_a_sequence(predictor: Predictor, item: Any) -> Problem:
    # Whoever passes one list of ids has one sequence, and not one sequence for each id.
    is_id = isinstance(item, int | np.integer) or (isinstance(item, Tensor) and item.ndim == 0)
    return Problem(
        "an item that is not a sequence",
        expected=_SHAPES_OF_ITEMS[predictor.data.tokens],
        found=_described(item),
        remedy="predict([ids]), for one sequence of ids" if is_id else "",
        id="D14",
    )


def _described(value: Any) -> str:
    """Return the type of a value, with its shape or the value itself."""
    name = type(value).__name__
    if isinstance(value, Tensor | np.ndarray):
        return f"{name} of shape {tuple(value.shape)}"
    return "None" if value is None else f"{name}: {value!r:.60}"


@torch.inference_mode()
def predict_ids(predictor: Predictor, ids: list[list[int]], top_k: int = 1) -> list[Prediction]:
    """Return a prediction for each list of ids, in their order. None of them is empty.

    A prediction does not depend on what else is predicted. All ids are in memory several times:
    callers pass at most CHUNK of them. Raises: NonFiniteError.
    """
    # Sorted by length, so that sequences of one batch need little padding.
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    lengths = [len(ids[index]) for index in order]

    # Cut as an evaluation is, which keeps a batch of long sequences small.
    predictions: dict[int, Prediction] = {}
    for first, last in cut_for_evaluation(lengths):
        indices = order[first:last]
        batch = [ids[index] for index in indices]
        predictions |= zip(indices, _predict_batch(predictor, batch, top_k), strict=True)

    # Back in the order in which they came.
    return [predictions[index] for index in range(len(ids))]


def predict_prefixes_of_ids(
    predictor: Predictor, ids: list[list[int]], top_k: int = 1
) -> Iterator[Iterator[Prefixes]]:
    """Yield the answers after each token of each list of ids, in their order. None is empty.

    All as in `prefixes_of`. Raises: NonFiniteError.
    """
    for parts in prefixes_of(predictor.network, ids, top_k):
        yield _finite(predictor, parts)


def _finite(predictor: Predictor, parts: Iterator[Prefixes]) -> Iterator[Prefixes]:
    for part in parts:
        _require_finite(predictor, part.probabilities)
        yield part


def _predict_batch(predictor: Predictor, ids: list[list[int]], top_k: int) -> Iterator[Prediction]:
    """Yield the predictions for a few sequences whose lengths rise, in their order."""
    # (B, top_k) each, best first.
    if predictor.compiled is None or len(ids[-1]) > LONGEST:
        logits = logits_of(predictor.network, ids)
    else:
        logits = predictor.compiled.of_ids(ids)
    classes, probabilities = likeliest(logits, top_k)
    _require_finite(predictor, probabilities)
    yield from predictions_of(predictor, classes, probabilities)


def predictions_of(
    predictor: Predictor, classes: Tensor, probabilities: Tensor
) -> Iterator[Prediction]:
    """Yield a prediction for each row of the likeliest classes and their probabilities, (R, K)."""
    label_of = predictor.labels.__getitem__
    for numbers, of_numbers in zip(classes.tolist(), probabilities.tolist(), strict=True):
        top = list(zip(map(label_of, numbers), of_numbers, strict=True))
        label, probability = top[0]
        yield Prediction(label, probability, top)


def _require_finite(predictor: Predictor, probabilities: Tensor) -> None:
    """Raise NonFiniteError if a probability is NaN: then the label stands for nothing."""
    if bool(probabilities.isnan().any()):
        what = "the model's answer is not a number"
        remedy = "an earlier checkpoint of the run"
        place = str(predictor.checkpoint)
        raise NonFiniteError(Problem(what, place, remedy=remedy, id="K13"))
