"""What TensorBoard's projector shows of a run: token embeddings, and states of sequences.

Vectors are written as text. The projector reads numbers in binary form, too, but only where they
happen to be no valid UTF-8.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.dashboard.names import as_text, class_names
from rnncls.data import FilesTask, Task
from rnncls.model.probes import summaries_of
from rnncls.rundir.paths import PROJECTOR, PROJECTOR_CONFIG
from rnncls.steps.state import TrainState
from rnncls.system.files import write_atomically
from rnncls.system.shown import on_short_line, visible

MOST_TOKENS = 10_000
MOST_SEQUENCES = 500
MOST_OF_NAME = 60  # characters of a token


class Cloud(NamedTuple):
    """Vectors, and what each of them stands for."""

    name: str  # of the files, and in the list of the projector
    vectors: Tensor  # (R, width), on the CPU
    header: Sequence[str]  # names of the columns, at least two: one alone would have no header
    rows: Sequence[Sequence[object]]  # (R, columns)


def write_projector(run_dir: Path, state: TrainState, task: Task) -> None:
    """Write token embeddings and the last states of validation sequences for the projector.

    The model is only read. Vectors that are not finite are left out: the projector cannot place
    them. Raises: OSError.
    """
    clouds = [_tokens(state, task), _states(state, task)]
    shown = [cloud for cloud in map(_finite, clouds) if len(cloud.rows)]

    folder = run_dir / PROJECTOR
    folder.mkdir(exist_ok=True)
    for cloud in shown:
        _write(folder / _vectors_of(cloud), _numbers(cloud.vectors))
        _write(folder / _names_of(cloud), _table(cloud))
    # Last, so that it never names a file that is not there yet.
    _write(run_dir / PROJECTOR_CONFIG, "".join(map(_entry, shown)))


def _tokens(state: TrainState, task: Task) -> Cloud:
    """Return the embeddings of all tokens, or of those that are most frequent in training."""
    weight = state.evaluated.embedding.weight.detach()
    if not isinstance(task, FilesTask):
        ids = torch.arange(min(len(weight), MOST_TOKENS))
        rows = [[id, id] for id in ids.tolist()]
        return Cloud("tokens", _taken(weight, ids), ["token", "id"], rows)

    names = task.dataset.vocabulary.tokens
    counts = torch.bincount(task.train.tokens, minlength=len(names))
    # Stable: of equally frequent tokens, those with the smaller ids.
    ids = counts.argsort(descending=True, stable=True)[:MOST_TOKENS]
    rows = [[_token(names[id]), id, count] for id, count in _pairs(ids, counts[ids])]
    header = ["token", "id", "count in training"]
    return Cloud("tokens", _taken(weight, ids), header, rows)


def _states(state: TrainState, task: Task) -> Cloud:
    """Return what the head sees of some validation sequences."""
    sequences = task.validation_sequences(MOST_SEQUENCES)
    names = class_names(task)
    tokens = sequences.tokens.tolist()
    rows = []
    for label, (start, end) in zip(
        sequences.labels.tolist(), pairwise(sequences.offsets.tolist()), strict=True
    ):
        rows.append([names[label], end - start, as_text(task, tokens[start:end])])
    header = ["label", "length", "sequence"]
    return Cloud("last_states", summaries_of(state.evaluated, sequences), header, rows)


def _taken(weight: Tensor, ids: Tensor) -> Tensor:
    return weight[ids.to(weight.device)].cpu()


def _pairs(left: Tensor, right: Tensor) -> Iterable[tuple[int, int]]:
    return zip(left.tolist(), right.tolist(), strict=True)


def _token(name: str) -> str:
    """Return a token as one word: a table has no place for tabs, line breaks and blank names."""
    return on_short_line(visible(name), MOST_OF_NAME) or '""'


def _finite(cloud: Cloud) -> Cloud:
    """Return the vectors that are finite."""
    is_finite = cloud.vectors.isfinite().all(1)
    kept = [row for row, keep in zip(cloud.rows, is_finite.tolist(), strict=True) if keep]
    return cloud._replace(vectors=cloud.vectors[is_finite], rows=kept)


def _numbers(vectors: Tensor) -> str:
    """Return a line with the numbers of each vector, between tabs."""
    # One format for a whole line is the fastest way. Six digits are more than anyone can see.
    line = "\t".join(["%.6g"] * vectors.shape[1]) + "\n"
    return "".join(line % tuple(vector) for vector in vectors.tolist())


def _table(cloud: Cloud) -> str:
    """Return the header and a line for each vector. No cell has a tab or a line break."""
    lines = ["\t".join(map(str, row)) for row in (cloud.header, *cloud.rows)]
    return "\n".join(lines) + "\n"


def _entry(cloud: Cloud) -> str:
    """Return what the projector's config says about some vectors, as text of a protocol buffer."""
    rows, width = cloud.vectors.shape
    return (
        "embeddings {\n"
        f'  tensor_name: "{cloud.name}"\n'
        f"  tensor_shape: {rows}\n"
        f"  tensor_shape: {width}\n"
        f'  tensor_path: "{PROJECTOR}/{_vectors_of(cloud)}"\n'
        f'  metadata_path: "{PROJECTOR}/{_names_of(cloud)}"\n'
        "}\n"
    )


def _vectors_of(cloud: Cloud) -> str:
    return f"{cloud.name}.tsv"


def _names_of(cloud: Cloud) -> str:
    return f"{cloud.name}_shown.tsv"


def _write(path: Path, text: str) -> None:
    # Nothing that a power cut could take is lost: the vectors are those of a checkpoint.
    write_atomically(path, text.encode(), durable=False)
