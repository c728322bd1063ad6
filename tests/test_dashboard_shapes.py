"""Projector, graph of the model, curves of precision and recall, and pictures of data."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format  # type: ignore[import-untyped]
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.util.tensor_util import make_ndarray

from rnncls.config import load_config
from rnncls.dashboard.curves import pr_curves, tags_of
from rnncls.dashboard.graph import graph_of, nodes_of
from rnncls.dashboard.projector import MOST_SEQUENCES, write_projector
from rnncls.data import Task, load_task
from rnncls.data.plots import draw, first_batch
from rnncls.data.report import stats
from rnncls.model.classifier import RNNClassifier
from rnncls.system.outlines import outline
from rnncls.training.states import new_state
from tests.helpers import ROOT, files_config, pixels_of, write_jsonl

ODD = ["$x_{", "a\tb", "a\nb", "\x1b[31m", "好好", "a\u2028b", "a\x85b", "w" * 200, '"', "\\"]
ODD_LABELS = ["no\nlabel", "tab\there", "a/b", "a_b"]


def generated(*overrides: str) -> Task:
    return load_task(load_config(ROOT / "configs/smoke.yaml", ["device=cpu", *overrides]))


def odd_task(folder: Path, tokens: str, **keys: Any) -> Task:
    """Files whose tokens and labels have whatever could tear a table or a picture."""
    rows: list[tuple[Any, Any]] = []
    for number in range(200):
        words = [ODD[(number + t) % len(ODD)] for t in range(1 + number % 30)]
        text = " ".join(words)
        rows.append((text if tokens == "characters" else words, ODD_LABELS[number % 4]))
    path = write_jsonl(folder / "rows.jsonl", rows)
    return load_task(files_config(path, {}, tokens=tokens, **keys))


def read_projector(folder: Path) -> dict[str, tuple[list[list[float]], list[list[str]]]]:
    """Return vectors and rows of each table, read as TensorBoard reads them."""
    config = ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    found = {}
    for each in config.embeddings:
        lines = (folder / each.tensor_path).read_text().splitlines()
        vectors = [list(map(float, line.split("\t"))) for line in lines]
        shown = (folder / each.metadata_path).read_text().split("\n")
        # The page drops lines without any letter.
        rows = [line.split("\t") for line in shown if line.strip()]
        assert list(each.tensor_shape) == [len(vectors), len(vectors[0])]
        found[each.tensor_name] = (vectors, rows)
    return found


def test_the_projector_gets_embeddings_and_what_the_head_sees(tmp_path: Path) -> None:
    task = generated()
    state = new_state(task)
    state.model.train()
    before = torch.get_rng_state()
    write_projector(tmp_path, state, task)
    assert state.model.training
    assert torch.equal(torch.get_rng_state(), before)

    found = read_projector(tmp_path)
    vectors, rows = found["tokens"]
    assert torch.allclose(torch.tensor(vectors), state.model.embedding.weight, rtol=1e-5)
    assert rows == [["token", "id"], ["0", "0"], ["1", "1"], ["2", "2"]]

    # The head makes the model's own logits of the states.
    vectors, rows = found["last_states"]
    assert len(vectors) == MOST_SEQUENCES
    batch = next(iter(task.validation()))
    logits = state.model(batch.tokens)[:MOST_SEQUENCES]
    assert torch.allclose(state.model.head(torch.tensor(vectors)), logits, atol=1e-4)
    labels = [str(label) for label in batch.labels[:MOST_SEQUENCES].tolist()]
    assert [row[0] for row in rows[1:]] == labels
    assert all(len(row[2].split()) == int(row[1]) for row in rows[1:])


@pytest.mark.parametrize("tokens", ["words", "characters"])
def test_no_name_tears_a_table_of_the_projector(tokens: str, tmp_path: Path) -> None:
    task = odd_task(tmp_path, tokens)
    write_projector(tmp_path, new_state(task), task)
    for name, (vectors, rows) in read_projector(tmp_path).items():
        assert len(rows) == len(vectors) + 1, name
        assert {len(row) for row in rows} == {3}
        assert all(cell.isprintable() for row in rows for cell in row)


def test_vectors_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    task = generated()
    state = new_state(task)
    with torch.no_grad():
        state.model.embedding.weight[1] = torch.nan
    write_projector(tmp_path, state, task)
    found = read_projector(tmp_path)
    assert [row[0] for row in found["tokens"][1]] == ["token", "0", "2"]
    assert all("1" not in row[2].split() for row in found["last_states"][1][1:])

    with torch.no_grad():
        state.model.embedding.weight[:] = torch.nan
    write_projector(tmp_path, state, task)
    assert read_projector(tmp_path) == {}


def test_a_projector_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "projector").write_text("a file")
    task = generated()
    with pytest.raises(OSError, match="projector"):
        write_projector(tmp_path, new_state(task), task)


def shape_of(node: NodeDef) -> list[int]:
    (shape,) = node.attr["_output_shapes"].list.shape
    return [dim.size for dim in shape.dim]


@pytest.mark.parametrize(
    ("cell", "layers", "bidirectional", "pooling"),
    list(product(["rnn", "lstm", "gru"], [1, 3], [False, True], ["last", "last_mean_max"])),
)
def test_the_graph_has_every_parameter_once_and_no_loose_end(
    cell: Any, layers: int, bidirectional: bool, pooling: Any
) -> None:
    model = RNNClassifier(
        *(7, 4),
        hidden_size=6,
        num_layers=layers,
        dropout=0.1 if layers > 1 else 0.0,
        bidirectional=bidirectional,
        bias=not bidirectional,
        cell=cell,
        pooling=pooling,
        initial_state="learned",
    )
    nodes = nodes_of(model, rows=5, steps=9)
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)

    found = {
        node.attr["parameter"].s.decode(): shape_of(node)
        for node in nodes
        if node.op == "Parameter"
    }
    assert found == {name: list(each.shape) for name, each in model.named_parameters()}

    # Whatever is read was added before, and all but the logits is read.
    seen: set[str] = set()
    used: set[str] = set()
    for node in nodes:
        assert set(node.input) <= seen
        seen.add(node.name)
        used |= set(node.input)
    assert seen - used == {"logits"}
    by_name = {node.name: node for node in nodes}
    summary = by_name["head/linear"].input[0]
    assert shape_of(by_name[summary]) == [5, model.summary_size]


def test_making_the_graph_changes_nothing() -> None:
    task = generated()
    state = new_state(task)
    state.model.train()
    before = torch.get_rng_state()
    graph = graph_of(state.model, task)
    assert state.model.training
    assert torch.equal(torch.get_rng_state(), before)

    assert graph.versions.producer
    shapes = {node.name: shape_of(node) for node in graph.node}
    assert shapes["tokens"] == [128, 4]
    assert shapes["logits"] == [128, 3]


def test_a_curve_is_precision_and_recall_at_each_threshold() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=draw)
    probabilities = torch.randn(200, 3, generator=draw).softmax(1)
    curves = pr_curves(labels, probabilities, ["a", "b", "c"])
    assert [curve.value[0].tag for curve in curves] == ["val/pr/a", "val/pr/b", "val/pr/c"]

    for number, curve in enumerate(curves):
        data = make_ndarray(curve.value[0].tensor)
        precision, recall = data[4], data[5]
        for place in (0, 30, 63, 90):
            found = probabilities[:, number].double() * 126 >= place
            right = found & (labels == number)
            assert recall[place] == pytest.approx(int(right.sum()) / int((labels == number).sum()))
            assert precision[place] == pytest.approx(int(right.sum()) / max(1, int(found.sum())))


def test_where_there_is_no_curve_none_is_made() -> None:
    labels = torch.tensor([0, 0, 1])
    shares = torch.full((3, 3), 1 / 3)
    assert len(pr_curves(labels, shares, ["a", "b", "c"])) == 2
    assert pr_curves(labels[:0], shares[:0], ["a", "b", "c"]) == []
    assert pr_curves(labels, shares * torch.nan, ["a", "b", "c"]) == []
    assert pr_curves(labels, torch.full((3, 11), 1 / 11), [*"abcdefghijk"]) == []


def test_every_class_has_a_tag_of_its_own() -> None:
    tags = tags_of([*ODD_LABELS, "", "好", "x" * 99, "a_b"])
    assert len(set(tags)) == 8
    assert all(tag.isprintable() and tag.count("/") == 2 for tag in tags)


# --- pictures of data


def texts_of(figure: Any, panel: int) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def test_the_first_batch_shows_tokens_padding_and_last_tokens() -> None:
    task = generated("train.batch_size=8")
    batch = next(task.batches(0, 1))
    figure: Any = first_batch(batch, None)
    lengths = batch.lengths.tolist()
    longest = max(lengths)

    # The rectangle: all tokens, and a hatched cell for each padding.
    padding, cells, tokens, frames = figure.axes[0].collections
    assert padding.get_hatch() is not None
    assert len(padding.get_paths()) == 8 * longest - sum(lengths)
    assert len(cells.get_paths()) == len(tokens.get_offsets()) == sum(lengths)
    columns = [round(frame.get_extents().x0 + 0.47) + 1 for frame in frames.get_paths()]
    assert sorted(columns) == sorted(lengths)

    # The packed columns: torch's own rows in torch's own order, under torch's own batch_sizes.
    sizes = batch.tokens.batch_sizes.tolist()
    assert texts_of(figure, 1) == [*map(str, sizes), "batch_sizes"]
    _, tokens, _ = figure.axes[1].collections
    places = [[column, row] for column, size in enumerate(sizes) for row in range(size)]
    assert tokens.get_offsets().tolist() == places
    for path, id in zip(tokens.get_paths(), batch.tokens.data.tolist(), strict=True):
        assert np.array_equal(path.vertices, outline(str(id)).vertices)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "max_length"), [("words", 1), ("words", 3), ("words", None), ("characters", None)]
)
def test_any_data_can_be_drawn(tokens: str, max_length: int | None, tmp_path: Path) -> None:
    task = odd_task(tmp_path, tokens, max_length=max_length, truncate="head")
    figure = first_batch(next(task.batches(0, 1)), task.vocabulary)
    assert pixels_of(figure).std() > 0
    draw(task, tmp_path / "stats.png")


@pytest.mark.slow
def test_one_class_one_token_and_thirty_classes_can_be_drawn(tmp_path: Path) -> None:
    for count in (1, 30):
        rows = [(["a"], f"class {number % count}") for number in range(90)]
        path = write_jsonl(tmp_path / f"{count}.jsonl", rows)
        task = load_task(files_config(path, {}, tokens="words", val_fraction=0.0))
        draw(task, tmp_path / f"{count}.png")
        assert pixels_of(first_batch(next(task.batches(0, 1)), task.vocabulary)).std() > 0


def test_statistics_of_generated_data_are_those_of_its_own_batches(tmp_path: Path) -> None:
    task = generated("train.batch_size=3000")
    found = stats(task)
    batches = list(task.batches(0, 4))
    assert found.splits["train"].sequences == 12_000
    assert found.splits["train"].tokens == sum(int(batch.lengths.sum()) for batch in batches)
    assert found.splits["val"].sequences == 500
    counts = sum(torch.bincount(batch.tokens.data, minlength=3) for batch in batches)
    assert found.vocabulary.most_frequent == dict(
        sorted(enumerate_names(counts), key=lambda pair: -pair[1])
    )
    json.dumps(found.to_json())
    draw(task, tmp_path / "stats.png")


def enumerate_names(counts: Any) -> list[tuple[str, int]]:
    return [(str(id), count) for id, count in enumerate(counts.tolist())]
