"""rnncls explain --padding: one batch in the naive ways and in those that are right."""

import json
import random
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from rnncls.data import sum_mod
from rnncls.data.batch_plots import columns_shown
from rnncls.inspect.padding import compare as padding
from rnncls.inspect.padding.compare import compare_padding
from rnncls.inspect.padding.plot import draw_padding
from rnncls.inspect.padding.runs import gathered_logits, masked_logits, naive_logits, padded_of
from rnncls.inspect.padding.view import PaddingView
from rnncls.inspect.subject import load_subject, own_sequences
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.system.rows import json_text
from rnncls.training.fit import fit
from tests.helpers import change_checkpoint, files_config, run_rnncls, sequences_of, write_jsonl

row = pytest.mark.row
CPU = torch.device("cpu")

ROWS = [[1, 2, 3], [4], [0, 0, 0, 0, 2, 5, 1], [3, 1], [5, 5, 2, 4, 0, 1, 3], [2, 2, 2, 1]]
NETWORKS: list[tuple[str, int, bool, dict[str, Any]]] = [
    (*shape, {}) for shape in product(["rnn", "gru", "lstm"], [1, 2], [False, True])
]
NETWORKS += [
    (cell, 2, bidirectional, {"pooling": pooling, "initial_state": "learned"})
    for cell, bidirectional, pooling in product(
        ["rnn", "lstm"], [False, True], ["mean", "max", "last_mean_max"]
    )
]


def network_of(cell: str, num_layers: int, bidirectional: bool, **options: Any) -> RNNClassifier:
    """A network of random weights, large enough for its states to remember."""
    torch.manual_seed(3)
    network = RNNClassifier(
        7,
        4,
        5,
        6,
        num_layers,
        nonlinearity="tanh",
        bidirectional=bidirectional,
        cell=cell,  # type: ignore[arg-type]
        **options,
    )
    if network.initial_state is not None:
        torch.nn.init.normal_(network.initial_state)
    for parameter in network.parameters():
        parameter.data *= 2
    return network.eval()


def logits_of(network: RNNClassifier, rows: list[list[int]]) -> Tensor:
    """The logits of each row, which the model itself runs alone."""
    return torch.cat([network(pack_sequence([torch.tensor(ids)])) for ids in rows])


@pytest.mark.parametrize(("cell", "num_layers", "bidirectional", "options"), NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@torch.no_grad()
def test_the_right_ways_give_the_logits_of_each_sequence_alone(
    cell: str,
    num_layers: int,
    bidirectional: bool,
    options: dict[str, Any],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    network = network_of(cell, num_layers, bidirectional, **options).to(dtype)
    batch = padded_of(sequences_of(ROWS), torch.arange(len(ROWS)), CPU)
    alone = logits_of(network, ROWS)
    scale = float(alone.abs().max().clamp(min=1))
    for logits in (gathered_logits(network, batch), masked_logits(network, batch)):
        assert float((logits - alone).abs().max()) <= tolerance * scale


@pytest.mark.parametrize(("cell", "num_layers", "bidirectional", "options"), NETWORKS)
@torch.no_grad()
def test_the_naive_ways_give_the_logits_of_each_sequence_with_its_padding(
    cell: str, num_layers: int, bidirectional: bool, options: dict[str, Any]
) -> None:
    """What they compute, by the model itself: the padding is a part of the sequence."""
    network = network_of(cell, num_layers, bidirectional, **options).double()
    batch = padded_of(sequences_of(ROWS), torch.arange(len(ROWS)), CPU)
    for padding_id in (0, 4):
        padded = [ids + [padding_id] * (7 - len(ids)) for ids in ROWS]
        expected = logits_of(network, padded)
        torch.testing.assert_close(naive_logits(network, batch, padding_id), expected)

    # A token that no sequence has stands for a vector of zeros.
    network.embedding.weight[6] = 0.0
    expected = logits_of(network, [ids + [6] * (7 - len(ids)) for ids in ROWS])
    torch.testing.assert_close(naive_logits(network, batch, None), expected)
    assert float((expected - logits_of(network, ROWS)).abs().max()) > 0.1


def test_what_stands_behind_the_end_of_a_sequence_is_never_read() -> None:
    """Sequences lie one behind the other in memory: a rectangle of them has other tokens there."""
    sequences = sequences_of(ROWS)
    batch = padded_of(sequences, torch.tensor([3, 0, 1]), CPU)
    rows = [batch.ids[:length, i].tolist() for i, length in enumerate(batch.lengths.tolist())]
    assert rows == [ROWS[3], ROWS[0], ROWS[1]]
    assert batch.is_token.sum(0).tolist() == [2, 3, 1]

    network = network_of("gru", 1, True)
    other = batch._replace(ids=batch.ids.masked_fill(~batch.is_token, 5))
    for run in (gathered_logits, masked_logits):
        assert torch.equal(run(network, batch), run(network, other))


def view_of(run_dir: Path) -> PaddingView:
    return compare_padding(load_subject(run_dir, "cpu"))


def test_lengths_differ_and_the_batch_is_always_the_same(run_dir: Path) -> None:
    view = view_of(run_dir)
    lengths = [len(ids) for ids in view.ids]
    assert len(lengths) == 8
    assert set(lengths) == {1, 2, 3, 4}
    assert view.to_json() == view_of(run_dir).to_json()


def test_what_is_counted_is_what_torch_packs(run_dir: Path) -> None:
    view = view_of(run_dir)
    ids = [torch.tensor(of_one) for of_one in view.ids]
    packed = pack_sequence(ids, enforce_sorted=False)
    assert view.batch_sizes == packed.batch_sizes.tolist()
    assert packed.sorted_indices is not None
    assert view.order == packed.sorted_indices.tolist()

    rectangle = 8 * max(map(len, ids))
    tokens = sum(map(len, ids))
    counts = {way.name: (way.cells, way.num_padding) for way in view.ways}
    assert counts.pop("packed") == (tokens, 0)
    assert set(counts.values()) == {(rectangle, rectangle - tokens)}
    assert list(counts) == ["id 0", "zeros", "id 2", "gather", "masked"]


def test_accuracies_and_differences_are_those_of_the_model_itself(run_dir: Path) -> None:
    """On sequences that are drawn again and padded with id 2, a part of the sequence then."""
    looked_into = load_subject(run_dir, "cpu")
    view = compare_padding(looked_into)
    drawn = own_sequences(looked_into, padding.SCORED)
    rows = [drawn.tokens[start:end].tolist() for start, end in pairwise(drawn.offsets.tolist())]
    # A batch of 128 has a sequence of 4 tokens, the most that there are.
    padded = torch.tensor([ids + [2] * (4 - len(ids)) for ids in rows])
    with torch.no_grad():
        logits = looked_into.network(pack_sequence(list(padded)))
    expected = int((logits.argmax(1) == drawn.labels).sum()) / 2000

    ways = {way.name: way for way in view.ways}
    assert ways["id 2"].accuracy == expected
    assert ways["packed"].accuracy == ways["gather"].accuracy == ways["masked"].accuracy == 1
    assert expected < 0.6

    with torch.no_grad():
        alone = logits_of(looked_into.network, view.ids)
        last = logits_of(looked_into.network, [ids + [2] * (4 - len(ids)) for ids in view.ids])
    difference = float((last - alone).abs().max())
    assert ways["id 2"].largest_difference == pytest.approx(difference, rel=1e-4)
    assert difference > 1


def test_the_table_is_80_columns_wide_and_says_what_to_learn(run_dir: Path) -> None:
    done = run_rnncls("explain", run_dir, "--padding")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "batch_sizes: 8 6 4 2" in lines
    assert "padded, masked and carried" in done.stdout
    text = " ".join(done.stdout.split())
    assert "Id 0 is the digit 0, which adds nothing to a sum" in text
    assert "* not that of the sequence alone" in text


def test_json_has_every_number(run_dir: Path) -> None:
    done = run_rnncls("explain", run_dir, "--padding", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    view = view_of(run_dir)
    assert [one["ids"] for one in shown["sequences"]] == view.ids
    assert [way["logits"] for way in shown["ways"]] == [way.logits.tolist() for way in view.ways]
    assert shown["batch_sizes"] == view.batch_sizes
    right = [way for way in shown["ways"] if way["is_right"]]
    assert [way["name"] for way in right] == ["gather", "masked", "packed"]
    assert all(way["relative"] <= 1e-5 for way in right)
    true = [one["label"] for one in shown["sequences"]]
    assert right[0]["predicted"] == true == [sum(ids) % 3 for ids in view.ids]


def test_a_picture_that_cannot_be_written_costs_no_numbers(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "padding.png"
    done = run_rnncls("explain", run_dir, "--padding", "--output", path)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "batch_sizes" in done.stdout

    missing = tmp_path / "missing" / "padding.png"
    done = run_rnncls("explain", run_dir, "--padding", "--output", missing)
    assert done.returncode == 6
    assert "batch_sizes" in done.stdout


def test_the_middle_of_long_sequences_is_left_out_of_the_picture() -> None:
    assert columns_shown(24) == list(range(24))
    shown = columns_shown(1000)
    assert shown == [*range(12), None, *range(989, 1000)]
    assert len(shown) == len(columns_shown(25)) == 24


# --- files


def run_of_files(folder: Path, rows: list[tuple[Any, Any]], **keys: Any) -> Path:
    """A run that was not trained to do anything, on files, all of which are looked at."""
    path = write_jsonl(folder / "rows.jsonl", rows)
    keys = {"tokens": "words", "val_fraction": 0.0, "test_fraction": 0.0, **keys}
    config = files_config(path, {"max_steps": 1, "checkpoint_every": 1}, **keys)
    fit(config, folder / "run")
    return folder / "run"


def test_any_tokens_and_labels_stay_on_their_line(tmp_path: Path) -> None:
    odd = ["$x_{", "a\nb", "\x1b[31m", "好" * 5, "w" * 200, "<b>", "%s", "…"]
    labels = ["no\nlabel", "$\\frac{", "l" * 100]
    draw = random.Random(0)
    rows = [
        ([draw.choice(odd) for _ in range(1 + number % 30)], labels[number % 3])
        for number in range(240)
    ]
    run_dir = run_of_files(tmp_path, rows)
    view = view_of(run_dir)
    text = view.to_text()
    assert "\x1b" not in text
    assert "a\\nb" in text
    assert max(map(len, text.splitlines())) <= 80
    assert 'id 0, "<unk>"' in text
    assert "every unknown token" in " ".join(text.split())
    assert view.num_scored == 240
    draw_padding(view, tmp_path / "p.png")


def test_one_token_and_one_length_have_nothing_to_go_wrong(tmp_path: Path) -> None:
    rows = [(["a", "a"], "xy"[number % 2]) for number in range(5)]
    run_dir = run_of_files(tmp_path, rows, unknown="error")
    view = view_of(run_dir)
    assert [way.name for way in view.ways[:3]] == ["id 0", "zeros", "id 0"]
    assert len(view.ids) == view.num_scored == 5
    assert {way.num_padding for way in view.ways} == {0}
    assert "there is no padding to go wrong" in " ".join(view.to_text().split())


@row("D13")
def test_sequences_that_are_too_long_are_left_out_and_without_others_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(["a", "b"] * (1 + number % 6), "xy"[number % 2]) for number in range(200)]
    run_dir = run_of_files(tmp_path, rows)

    # As long as it takes is not as long as a test may take.
    monkeypatch.setattr(padding, "MOST_TOKENS", 8)
    view = view_of(run_dir)
    assert max(map(len, view.ids)) == 8
    # 33 of 10 tokens and 33 of 12.
    assert view.num_too_long == 66
    assert "66 sequences of more than 8 tokens were left out" in view.to_text()

    monkeypatch.setattr(padding, "MOST_TOKENS", 1)
    done = run_rnncls("explain", run_dir, "--padding")
    assert done.returncode == 3
    assert "error[D13]: sequences too long to be padded" in done.stderr
    assert "found:    at least 2 in each" in done.stderr


def test_fewer_sequences_are_scored_where_they_are_long(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padding, "MOST_CELLS", 400)
    assert view_of(run_dir).num_scored == 100
    monkeypatch.setattr(sum_mod, "MOST_DRAWN", 80)
    assert view_of(run_dir).num_scored == 20


@row("K13")
def test_weights_that_are_not_finite_are_warned_of_and_shown_as_such(tmp_path: Path) -> None:
    rows = [(["a", "b"] * (1 + number % 6), "xy"[number % 2]) for number in range(80)]
    run_dir = run_of_files(tmp_path, rows)
    change_checkpoint(
        find_newest(run_dir),
        lambda _, tensors: tensors["model/head.bias"].fill_(torch.nan),
    )
    path = tmp_path / "p.png"
    newest = find_newest(run_dir)
    done = run_rnncls("explain", newest, "--padding", "--json", "--output", path)
    assert done.returncode == 0, done.stderr
    assert "warning[K13]" in done.stderr
    shown = json.loads(done.stdout)
    assert {way["accuracy"] for way in shown["ways"]} == {None}
    assert path.exists()
    assert "nan" in run_rnncls("explain", newest, "--padding").stdout


@pytest.mark.slow
def test_on_the_default_run_naive_padding_is_wrong_unless_it_adds_nothing(tmp_path: Path) -> None:
    done = run_rnncls(
        "train",
        "--config",
        "configs/sum_mod_10_plain.yaml",
        "--run-dir",
        tmp_path / "run",
        "device=cpu",
    )
    assert done.returncode == 0, done.stderr
    view = view_of(tmp_path / "run")
    ways = {way.name: way for way in view.ways}
    assert ways["zeros"].accuracy < 0.5
    assert ways["id 7"].accuracy < 0.5
    # The trap: right labels by the luck of the task, from logits that are not.
    assert ways["id 0"].accuracy > 0.99
    assert min(ways[name].largest_difference for name in ("id 0", "zeros", "id 7")) > 1
    shown = json.loads(json_text(view.to_json()))
    assert max(way["relative"] for way in shown["ways"] if way["is_right"]) < 1e-5
    assert {way.accuracy for way in view.ways if way.is_right} == {1.0}
