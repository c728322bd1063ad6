"""Evaluate a model: overall, by length, by class, and what it gets wrong."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from rnncls.config import Config, SumModConfig
from rnncls.config.ranges import DEFAULT_SAMPLES
from rnncls.data import Batch
from rnncls.data.dataset import Dataset
from rnncls.data.loading import load_dataset
from rnncls.errors import DataError
from rnncls.evaluation.calibration import Confidences, Shuffled
from rnncls.evaluation.control import compare_with_control
from rnncls.evaluation.examples import (
    Examples,
    generated_examples,
    held_out_examples,
    require_sizes,
)
from rnncls.evaluation.mistakes import MostConfident, confused_classes
from rnncls.evaluation.predictions import writing_predictions
from rnncls.evaluation.report import Report, make_report, require_few_classes
from rnncls.evaluation.scores import gather, scored
from rnncls.evaluation.ways import compiled_model
from rnncls.model.classifier import RNNClassifier
from rnncls.model.inputs import beyond_positions
from rnncls.system.distributed import World


def evaluate(
    model: RNNClassifier,
    config: Config,
    lengths: Sequence[int] | None = None,
    num_samples: int = DEFAULT_SAMPLES,
    confusion: bool = False,
    progress: bool = False,
    dataset: Dataset | None = None,
    check: Callable[[], object] | None = None,
    errors: int | None = None,
    predictions: str | Path | None = None,
    csv_safe: bool = False,
    world: World | None = None,
    control: RNNClassifier | None = None,
) -> Report:
    """Evaluate a model on generated sequences, or on files.

    Generated: on every sequence of a length that has at most `EXHAUSTIVE_LIMIT`, else on a sample.
    With `lengths`, `num_samples` sequences of each longer length are drawn from the test stream.
    Without, the training lengths are evaluated: on all sequences if every length allows it, else on
    `num_samples` sequences, drawn as training draws them.

    Files: on the whole test split of `dataset`, or on its validation split if the test split is
    empty; with `lengths`, on its sequences of these lengths. Without `dataset`, the config's files
    are read; they must be those of training.

    `errors` asks for that many of the most confident errors, `report.mistakes`, and for the classes
    that are confused, `report.confused`; 0 asks for the classes alone. `predictions` is a .jsonl,
    .csv or .tsv file for what the model says about every sequence; with `csv_safe`, no cell of a
    table is a formula to a spreadsheet. `progress` shows a bar on stderr if that is a terminal.
    `check` is called before each batch. With other processes, in `world`, each runs the model over
    some of the batches, and all have the same report; the first of them writes the predictions.
    `control` is a second model of the same data, the n-gram control of a run, which is evaluated on
    the same sequences: `report.control` says what the first one adds to it.

    Raises: ConfigError if a confusion matrix would be huge. DataError if the files cannot be read,
    are not those of training or have no sequence of these lengths, or if these are beyond the
    model's positions. With `predictions`, WriteError,
    and NonFiniteError if the loss is not finite.
    """
    examples = _choose(model, config, lengths, num_samples, progress, dataset)

    # Refused before the model runs over everything.
    if confusion:
        require_few_classes(len(examples.labels))

    # One pass over the model: what looks at single predictions stands between it and the scores.
    confident = MostConfident(errors or 0, examples)
    confidences = Confidences()

    compiled = compiled_model(model, examples.num_tokens)
    logits_of = model if compiled is None else compiled.of_packed

    # The label of a generated sequence does not depend on the order of its tokens.
    shuffled = None
    if examples.source is None:
        shuffled = Shuffled(model, examples.total, config.seed, logits_of)
    is_first = world is None or world.is_first
    path = Path(predictions) if predictions is not None and is_first else None
    with (
        # disable=None leaves the bar out unless stderr is a terminal.
        tqdm(total=examples.total, unit="seq", disable=None if progress else True) as bar,
        closing(
            scored(model, _with_progress(examples.batches, bar, check), logits_of, world)
        ) as parts,
        writing_predictions(path, examples, csv_safe) as written,
    ):
        watched = confidences.watch(confident.watch(parts))
        if shuffled is not None:
            watched = shuffled.watch(watched)
        scores = gather(written(watched))

    report = make_report(
        scores,
        confidences.all(),
        examples.labels,
        examples.trained,
        examples.exhaustive,
        confusion,
    )
    surviving = None if shuffled is None else shuffled.surviving()
    report = replace(report, data=examples.data, shuffled=surviving)
    if control is not None:
        again = _choose(control, config, lengths, num_samples, progress, dataset)
        control_wrong = _wrong(control, again, progress, check, world)
        report = replace(report, control=compare_with_control(scores.wrong(), control_wrong))
    if errors is None:
        return report

    confused = confused_classes(scores, examples.labels)
    return replace(report, mistakes=confident.mistakes(), confused=confused)


def _wrong(
    model: RNNClassifier,
    examples: Examples,
    progress: bool,
    check: Callable[[], object] | None,
    world: World | None,
) -> Tensor:
    """Return which of the examples a model gets wrong, (R,) bool, in their order."""
    compiled = compiled_model(model, examples.num_tokens)
    logits_of = model if compiled is None else compiled.of_packed
    with (
        tqdm(total=examples.total, unit="seq", disable=None if progress else True) as bar,
        closing(
            scored(model, _with_progress(examples.batches, bar, check), logits_of, world)
        ) as parts,
    ):
        return gather(parts).wrong()


def _choose(
    model: RNNClassifier,
    config: Config,
    lengths: Sequence[int] | None,
    num_samples: int,
    progress: bool,
    dataset: Dataset | None,
) -> Examples:
    """Choose the sequences to evaluate, which differ between the two kinds of data."""
    if isinstance(config.data, SumModConfig):
        _require_positions(model, lengths)
        return generated_examples(config.data, config.seed, lengths, num_samples)

    # Read without the checkpoint's vocabulary, which a model alone does not have.
    dataset = dataset or load_dataset(config.data, progress=progress)
    sizes = (model.embedding.num_embeddings, model.head.out_features)
    require_sizes(dataset, sizes)
    return held_out_examples(dataset, config.data, lengths)


def _require_positions(model: RNNClassifier, lengths: Sequence[int] | None) -> None:
    """Raise DataError for lengths that the model has no positions for.

    Those of files are cut as in training.
    """
    most = model.num_positions
    longest = max(lengths or [0])
    if most is not None and longest > most:
        raise DataError(replace(beyond_positions(longest, most), where="the lengths asked for"))


def _with_progress(
    batches: Iterable[Batch], bar: "tqdm[Any]", check: Callable[[], object] | None
) -> Iterator[Batch]:
    """Yield the batches, calling `check` before each and moving the bar after it."""
    for batch in batches:
        if check is not None:
            check()
        yield batch
        bar.update(len(batch.labels))
