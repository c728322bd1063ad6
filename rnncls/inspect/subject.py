"""What is looked into: a trained model, a sequence for it, and sequences of its own data."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from rnncls.config import SumModConfig
from rnncls.data.sequences import Sequences
from rnncls.data.sum_mod import draw_sequences
from rnncls.errors import ConfigError, DataError, Problem
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.predictor import Predictor, ReadTokens, predictor_of, read_tokens
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.checkpoint_files import load_checkpoint
from rnncls.rundir.restore import held_out_data, is_finite
from rnncls.seeds import mix
from rnncls.system.device import set_precision, set_threads
from rnncls.system.streams import say


class Subject(NamedTuple):
    """A trained model, with all that is known about it."""

    checkpoint: Checkpoint
    predictor: Predictor

    @property
    def network(self) -> RNNClassifier:
        """The model itself, in evaluation mode."""
        return self.predictor.network


def load_subject(path: Path, device: str | None = None) -> Subject:
    """Load a checkpoint file, or the best checkpoint of a run. Weights that are NaN are warned of.

    From here on the process computes with the threads and the precision of the run's training.

    Raises: CheckpointError, MachineError, as `load_checkpoint`.
    """
    checkpoint, network = load_checkpoint(path, device)
    set_threads(checkpoint.config.train.num_threads)
    set_precision(checkpoint.config.train.precision)
    if not is_finite(checkpoint):
        say(f"rnncls: warning[K13]: weights in {checkpoint.path} are not finite")
    return Subject(checkpoint, predictor_of(checkpoint, network))


def require_recurrence(subject: Subject, view: str) -> None:
    """Raise ConfigError, which names the view, for a model without recurrent layers."""
    if subject.network.is_recurrent:
        return
    raise ConfigError(
        Problem(
            "this model has no recurrent layers, and so no states",
            view,
            expected="a run with model.cell: rnn, lstm or gru",
            found="model.cell: none",
            remedy="a sequence alone, which shows its tokens, what the head sees, and the answer",
            id="C17",
        )
    )


def tokens_of_text(predictor: Predictor, text: str) -> ReadTokens:
    """Return a sequence as a person types it; that it was truncated is said.

    Raises: DataError if it is empty, or has a token that the model does not know.
    """
    read = read_tokens(predictor, text)
    if isinstance(read, Problem):
        raise DataError(replace(read, remedy=read.remedy or "a sequence of tokens that it knows"))
    if read.num_left_out:
        data = predictor.data
        side = "first" if data.truncate == "head" else "last"
        kept = f"the {side} {len(read.ids):,} of {len(read.ids) + read.num_left_out:,} tokens"
        say(f"rnncls: {kept} are looked at: data.max_length, as in training")
    return read


def own_sequences(
    subject: Subject, count: int, progress: bool = False, data_dir: Path | None = None
) -> Sequences:
    """Return `count` labelled sequences of the model's own data, always the same ones.

    Generated ones are drawn as for validation, and fewer if they may be very long. Of files they
    are from the split that an evaluation uses, and may be fewer.

    Raises: DataError if files are missing or bad. CheckpointError if they have changed.
    """
    config = subject.checkpoint.config
    generator = torch.Generator().manual_seed(mix(config.seed, "inspect"))
    if isinstance(config.data, SumModConfig):
        return draw_sequences(config.data, count, generator)

    dataset = held_out_data(subject.checkpoint, progress=progress, data_dir=data_dir)
    if dataset is None:
        raise ValueError("a model of files without a vocabulary")
    split = dataset.splits[dataset.held_out()]
    rows = torch.randperm(len(split), generator=generator)[:count].sort().values
    return split.select(rows)
