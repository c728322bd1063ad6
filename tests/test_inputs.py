"""What the first layer reads: n-grams, positions, the skip, no recurrence, and dropout outside it.

The reference is NumPy, with a hash and a backward pass of its own.
"""

import copy
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from rnncls.config import Config
from rnncls.config.load import parse_config
from rnncls.data import Padded
from rnncls.errors import CheckpointError, Interrupted
from rnncls.model.build import build_model
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import NO_KEYS, Keys, input_keys
from rnncls.model.inputs import InputDropout, ngram_rows
from rnncls.model.pieces import Pieces
from rnncls.model.pooling import Pooling
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import HARD, config_of, files_config, outcome, some_rows, stop_at, write_jsonl

NUM_TOKENS = 7
NUM_CLASSES = 3
TABLE = 11  # so small that n-grams share rows
SIZES = (2, 3)
ROWS = ([3, 1, 4, 1, 5, 6, 3], [2, 6], [5], [1, 1, 1, 1], [0, 6, 0, 5, 5])
LABELS = (0, 2, 1, 1, 0)

Array = np.ndarray[Any, np.dtype[Any]]


def packed(rows: Sequence[Sequence[int]] = ROWS) -> PackedSequence:
    return pack_sequence([torch.tensor(row) for row in rows], enforce_sorted=False)


def padded(rows: Sequence[Sequence[int]] = ROWS, filler: int = 0) -> Padded:
    longest = max(map(len, rows))
    filled = [[*row, *[filler] * (longest - len(row))] for row in rows]
    return Padded(torch.tensor(filled), torch.tensor(list(map(len, rows))))


def model_of(**options: Any) -> RNNClassifier:
    """Return a model in float64 whose tables are not zero, in evaluation mode."""
    torch.manual_seed(5)
    shape = {"embedding_dim": 4, "hidden_size": 5, "ngram_table": TABLE}
    model = RNNClassifier(NUM_TOKENS, NUM_CLASSES, **{**shape, **options}).double()
    for table in (model.ngram_embedding, model.position_embedding):
        if table is not None:
            nn.init.normal_(table.weight)
    return model.eval()


# --- the reference


def row_by_numpy(ngram: Sequence[int], table: int) -> int:
    """Return the row of an n-gram, in NumPy's unsigned numbers."""
    with np.errstate(over="ignore"):
        hashed = np.uint64(0)
        for id in reversed(ngram):
            hashed = (hashed + np.uint64(id + 1)) * np.uint64(6364136223846793005)
        hashed = (hashed ^ hashed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ hashed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        hashed = hashed ^ hashed >> np.uint64(31)
    return int((hashed >> np.uint64(1)) % np.uint64(table))


def rows_by_numpy(row: Sequence[int], t: int, table: int, has_unknown: bool) -> list[int]:
    """Return the rows of the n-grams that end at token t."""
    marked = [-1, *row]
    found = []
    for size in SIZES:
        ngram = marked[max(0, t - size + 2) : t + 2]
        if len(ngram) == size and not (has_unknown and 0 in ngram):
            found.append(row_by_numpy(ngram, table))
    return found


class Tables(NamedTuple):
    """The three tables of a model, or their gradients."""

    tokens: Array
    ngrams: Array
    positions: Array


def numpy_of(parameter: Tensor | None) -> Array:
    return np.zeros((0, 4)) if parameter is None else parameter.detach().numpy().copy()


def tables_of(model: RNNClassifier) -> Tables:
    found = []
    for table in (model.embedding, model.ngram_embedding, model.position_embedding):
        found.append(numpy_of(None if table is None else table.weight))
    return Tables(*found)


def inputs_by_numpy(model: RNNClassifier, row: Sequence[int]) -> Array:
    """Return what is read of each token, (T, E)."""
    tables = tables_of(model)
    found = []
    for t, id in enumerate(row):
        read = tables.tokens[id].copy()
        if model.ngrams:
            for number in rows_by_numpy(row, t, TABLE, model.has_unknown):
                read += tables.ngrams[number]
        if model.num_positions is not None:
            read += tables.positions[t]
        found.append(read)
    return np.stack(found)


def backward_by_numpy(model: RNNClassifier, row: Sequence[int], gradient: Array) -> Tables:
    """Return the gradients of the tables, from that of what is read (T, E)."""
    tables = Tables(*map(np.zeros_like, tables_of(model)))
    for t, id in enumerate(row):
        tables.tokens[id] += gradient[t]
        if model.ngrams:
            for number in rows_by_numpy(row, t, TABLE, model.has_unknown):
                tables.ngrams[number] += gradient[t]
        if model.num_positions is not None:
            tables.positions[t] += gradient[t]
    return tables


def states_by_numpy(model: RNNClassifier, inputs: Array) -> Array:
    """Return h_t of a tanh network of one layer and direction, (T, H)."""
    w_ih, w_hh, b_ih, b_hh = (numpy_of(parameter) for parameter in model.rnn.parameters())
    state = np.zeros(len(w_hh))
    states = []
    for read in inputs:
        state = np.tanh(w_ih @ read + b_ih + w_hh @ state + b_hh)
        states.append(state)
    return np.stack(states)


def backward_of_states(
    model: RNNClassifier, inputs: Array, states: Array, gradient: Array
) -> Array:
    """Return the gradient of what is read (T, E), from that of the states (T, H), by hand."""
    w_ih, w_hh, *_ = (numpy_of(parameter) for parameter in model.rnn.parameters())
    of_inputs = np.zeros_like(inputs)
    from_later = np.zeros(len(w_hh))
    for t in reversed(range(len(inputs))):
        of_sum = (gradient[t] + from_later) * (1 - states[t] ** 2)
        of_inputs[t] = w_ih.T @ of_sum
        from_later = w_hh.T @ of_sum
    return of_inputs


def pooled_by_numpy(pooling: str, states: Array) -> Array:
    parts = {"last": states[-1], "mean": states.mean(0), "max": states.max(0)}
    names = ["last", "mean", "max"] if pooling == "last_mean_max" else [pooling]
    return np.concatenate([parts[name] for name in names])


def backward_of_pooling(pooling: str, states: Array, gradient: Array) -> Array:
    """Return the gradient of the states (T, H), from that of what is pooled."""
    names = ["last", "mean", "max"] if pooling == "last_mean_max" else [pooling]
    found = np.zeros_like(states)
    for name, part in zip(names, np.split(gradient, len(names)), strict=True):
        if name == "last":
            found[-1] += part
        elif name == "mean":
            found += part / len(states)
        else:
            found[states.argmax(0), np.arange(states.shape[1])] += part
    return found


def reference(model: RNNClassifier) -> tuple[Array, Tables]:
    """Return logits (B, N), and the gradients of the tables for the summed cross-entropy."""
    weight = numpy_of(model.head.weight)
    bias = numpy_of(model.head.bias)
    logits = []
    total = Tables(*map(np.zeros_like, tables_of(model)))
    for row, label in zip(ROWS, LABELS, strict=True):
        inputs = inputs_by_numpy(model, row)
        states = states_by_numpy(model, inputs) if model.is_recurrent else inputs
        seen = pooled_by_numpy(model.pooling, states)
        width = len(seen)
        if model.skip:
            seen = np.concatenate([seen, inputs.mean(0)])
        logits.append(weight @ seen + bias)

        p = np.exp(logits[-1] - logits[-1].max())
        of_logits = p / p.sum() - np.eye(NUM_CLASSES)[label]
        of_seen = weight.T @ of_logits
        gradient = backward_of_pooling(model.pooling, states, of_seen[:width])
        if model.is_recurrent:
            gradient = backward_of_states(model, inputs, states, gradient)
        if model.skip:
            gradient = gradient + of_seen[width:] / len(row)
        for table, part in zip(total, backward_by_numpy(model, row, gradient), strict=True):
            table += part
    return np.stack(logits), total


# --- the model against it


def test_hash_is_that_of_numpy_and_of_the_page() -> None:
    tokens = packed()
    for has_unknown, table in product([False, True], [1, TABLE, 65536, 2**24]):
        found = ngram_rows(tokens.data, tokens.batch_sizes, SIZES, table, has_unknown)
        padded_rows, _ = torch.nn.utils.rnn.pad_packed_sequence(tokens._replace(data=found))
        for number, row in enumerate(ROWS):
            for t in range(len(row)):
                kept = [rank for rank in padded_rows[t, number].tolist() if rank >= 0]
                assert kept == rows_by_numpy(row, t, table, has_unknown)

    # The example of docs/how-it-works.md.
    assert row_by_numpy([3, 1], 65536) == 18381
    assert row_by_numpy([2**20 - 1, 0, 5], 2**24) == int(
        ngram_rows(
            torch.tensor([2**20 - 1, 0, 5]), torch.ones(3, dtype=torch.int64), [3], 2**24, False
        )[-1]
    )


INPUTS = {
    "n-grams": {"ngrams": SIZES},
    "n-grams, unknown": {"ngrams": SIZES, "has_unknown": True},
    "positions": {"num_positions": 7},
    "all": {"ngrams": SIZES, "num_positions": 9, "has_unknown": True},
    "tokens": {},
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("pooling", [*get_args(Pooling), "none"])
def test_logits_and_gradients_are_those_of_numpy(
    inputs: dict[str, Any], skip: bool, pooling: str
) -> None:
    options = {"cell": "none"} if pooling == "none" else {"pooling": pooling}
    model = model_of(nonlinearity="tanh", skip=skip, **options, **inputs)
    expected, of_tables = reference(model)

    def check(tokens: PackedSequence | Padded, pieces: Pieces | None = None) -> None:
        model.zero_grad()
        logits = model(tokens) if pieces is None else model(tokens, pieces=pieces)
        np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
        nn.functional.cross_entropy(logits, torch.tensor(LABELS), reduction="sum").backward()  # type: ignore[no-untyped-call]
        tables = (model.embedding, model.ngram_embedding, model.position_embedding)
        for table, gradient in zip(tables, of_tables, strict=True):
            if table is not None:
                assert table.weight.grad is not None
                np.testing.assert_allclose(
                    table.weight.grad.numpy(), gradient, rtol=1e-10, atol=1e-12
                )

    # Packed, padded with any token, and cut into pieces that are run again.
    check(packed())
    check(padded())
    check(padded(filler=NUM_TOKENS - 1))
    for every in (1, 2, 3, 50):
        check(packed(), Pieces(recompute_every=every))


def test_positions_and_ngrams_begin_at_nothing() -> None:
    plain: dict[str, Any] = {"embedding_dim": 4, "hidden_size": 5}
    torch.manual_seed(0)
    model = RNNClassifier(NUM_TOKENS, NUM_CLASSES, **plain)
    torch.manual_seed(0)
    more = RNNClassifier(NUM_TOKENS, NUM_CLASSES, ngrams=SIZES, num_positions=9, **plain)
    assert torch.equal(model(packed()), more(packed()))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "none"])
def test_a_sequence_alone_and_in_company(cell: Any) -> None:
    options = {"ngrams": SIZES, "num_positions": 7, "skip": True, "pooling": "last_mean_max"}
    model = model_of(cell=cell, **options)
    together = model(packed())
    for row, logits in zip(ROWS, together, strict=True):
        torch.testing.assert_close(model(packed([row]))[0], logits, rtol=1e-12, atol=1e-12)
        # Padding to the right of it, in a wider rectangle, is read by no n-gram.
        of_two = model(padded([row, ROWS[0]]))[0]
        torch.testing.assert_close(of_two, logits, rtol=1e-12, atol=1e-12)

    # What is read of each token has the same bits, as no product is taken.
    inputs, lengths = nn.utils.rnn.pad_packed_sequence(
        packed()._replace(data=model.embedded(packed()))
    )
    for number, row in enumerate(ROWS):
        assert torch.equal(model.embedded(packed([row])), inputs[: lengths[number], number])


def test_a_sequence_beyond_the_last_position_is_refused() -> None:
    model = model_of(num_positions=6, ngrams=SIZES)
    for tokens in (packed(), padded()):
        with pytest.raises(ValueError, match="7 tokens, and the model has positions for 6"):
            model(tokens)
    model(packed([ROWS[0][:6]]))


# --- dropout


RATES = InputDropout(tokens=0.3, ngrams=0.4, embedding=0.2, head=0.25)
KEYS = Keys(of_inputs=input_keys(seed=3, step=12))


def training_model(**options: Any) -> RNNClassifier:
    shape = {"ngrams": SIZES, "skip": True, "has_unknown": True, "input_dropout": RATES}
    return model_of(**{**shape, **options}).train()


def test_each_dropout_has_a_key_of_its_own() -> None:
    keys = input_keys(seed=3, step=12)
    for name in InputDropout._fields:
        model = training_model(input_dropout=InputDropout(**{name: 0.5}))
        logits = model(packed(), keys=Keys(of_inputs=keys))
        for changed in keys._fields:
            other = keys._replace(**{changed: getattr(keys, changed) + 1})
            is_same = torch.equal(model(packed(), keys=Keys(of_inputs=other)), logits)
            assert is_same == (changed != name)


@pytest.mark.parametrize("cell", ["gru", "none"])
def test_dropout_is_a_function_of_key_row_time_and_column(cell: Any) -> None:
    model = training_model(cell=cell, num_positions=7, pooling="mean")
    whole = model(packed(), keys=KEYS)
    assert torch.equal(model(packed(), keys=KEYS), whole)
    other = KEYS._replace(of_inputs=input_keys(seed=3, step=13))
    assert not torch.allclose(model(packed(), keys=other), whole)
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}

    # However it is laid out, and whatever comes behind.
    torch.testing.assert_close(model(padded(), keys=KEYS), whole, **close)
    torch.testing.assert_close(model(packed([*ROWS, ROWS[2]]), keys=KEYS)[:-1], whole, **close)
    company = [ROWS[0], *([[6, 6]] * 3), ROWS[4]]
    changed = model(packed(company), keys=KEYS)
    torch.testing.assert_close(changed[[0, 4]], whole[[0, 4]], **close)
    torch.testing.assert_close(
        model(packed(), pieces=Pieces(recompute_every=2), keys=KEYS), whole, **close
    )

    # Shares of several processes: every second row.
    for first in range(2):
        share = model(packed(ROWS[first::2]), keys=KEYS._replace(first_row=first, row_step=2))
        torch.testing.assert_close(share, whole[first::2], **close)


def test_dropout_leaves_out_the_shares_that_it_says() -> None:
    count = 400
    rows = torch.randint(1, NUM_TOKENS, (count, 20)).tolist()
    tokens = packed(rows)
    model = training_model()
    ids, ngrams, _ = model.token_rows(tokens, KEYS)
    is_dropped = (ids != tokens.data).double().mean()
    assert abs(float(is_dropped) - RATES.tokens) < 0.02

    # Those with a dropped token have no n-gram, and are not counted among the dropped ones.
    of_rest = copy.deepcopy(model)
    of_rest.input_dropout = InputDropout(embedding=RATES.embedding, head=RATES.head)
    read = of_rest.embed(of_rest.token_rows(tokens, KEYS), KEYS)
    assert abs(float((read == 0).double().mean()) - RATES.embedding) < 0.02
    summary = torch.ones(count, 8, dtype=torch.float64)
    kept = of_rest.drop_summary(summary, KEYS)
    assert abs(float((kept == 0).double().mean()) - RATES.head) < 0.04
    # What stays is enlarged: the factor is a float32.
    torch.testing.assert_close(kept.max(), torch.tensor(1 / 0.75).double(), rtol=1e-6, atol=0)
    assert ngrams.shape == (len(tokens.data), 2)


def test_no_dropout_in_evaluation() -> None:
    model = training_model().eval()
    assert torch.equal(model(packed(), keys=KEYS), model(packed(), keys=NO_KEYS))


# --- runs


DROPOUTS = {"embedding_dropout": 0.2, "ngram_dropout": 0.3, "head_dropout": 0.2}
PARTS: dict[str, Any] = {
    "ngrams": [2, 3],
    "ngram_table": 50,
    "skip": True,
    "positions": "learned",
    **DROPOUTS,
}


def generated(**model: Any) -> Config:
    sections = copy.deepcopy(HARD)
    sections["model"] = {**sections["model"], **PARTS, "cell": "gru", **model}
    return config_of(**sections)


def of_files(folder: Path, **model: Any) -> Config:
    path = write_jsonl(folder / "rows.jsonl", some_rows(60))
    keys: dict[str, Any] = {"max_length": 8, "token_dropout": 0.2}
    config = files_config(path, **keys)
    raw = config.model_dump(mode="json")
    raw["model"] |= {**PARTS, "cell": "lstm", "pooling": "mean", **model}
    return parse_config(raw, "test")


@pytest.mark.parametrize("kind", ["generated", "files", "control"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "generated":
        config = generated()
    else:
        config = of_files(tmp_path, **({"cell": "none"} if kind == "control" else {}))
    fit(config, tmp_path / "whole")

    with monkeypatch.context() as patch:
        stop_at(patch, step=7)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "stopped")
    resume(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.row("K9")
def test_a_table_of_other_ngrams_is_no_beginning(tmp_path: Path) -> None:
    """The tables have the same shape, and each row another meaning."""
    fit(generated(), tmp_path / "run")
    with pytest.raises(CheckpointError) as error:
        fit(generated(ngrams=[2, 4]), tmp_path / "other", init_from=tmp_path / "run")
    (problem,) = error.value.problems
    assert (problem.id, problem.remedy) == ("K9", "model.ngrams=[2,3]")
    assert not (tmp_path / "other").exists()


def test_the_model_of_a_config_has_its_parts() -> None:
    config = generated()
    model = build_model(config)
    assert model.ngrams == (2, 3)
    assert model.num_positions == config.data.max_length
    assert model.input_dropout == InputDropout(ngrams=0.3, embedding=0.2, head=0.2)
    assert not model.has_unknown
