"""scripts/bench runs each of its ways, and they compute the same."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.bench import measuring, regimes, torch_ways
from scripts.bench.__main__ import overview, table
from scripts.bench.inference import inference_table, measure_inference
from scripts.bench.ingredients import WAYS, ingredients_table, measure_ingredients
from scripts.bench.regimes import CELLS, FOLDER, Regime, write_file

SMALL = Regime(4, 5, 2, 2, 5)
BUCKETED = replace(SMALL, min_length=1, max_length=9, num_tokens=7, bucketed=True)


@pytest.fixture(autouse=True)
def few_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the data sets small, and give torch its threads back."""
    threads = torch.get_num_threads()
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for module in (regimes, torch_ways):
        monkeypatch.setattr(module, "SEQUENCES", 60)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("size", [SMALL, BUCKETED], ids=["shuffled", "bucketed"])
def test_every_way_takes_steps_and_computes_the_same(
    size: Regime, directions: int, cell: str
) -> None:
    regime = replace(size, cell=cell, directions=directions)
    write_file(regime)
    ways = measuring.ways(regime)
    for name, make in ways.items():
        run = make()
        assert run(2) >= 2, name

    differences = measuring.gate(regime, list(ways))
    assert {"rnncls packed", "rnncls compiled"} <= differences.keys()
    # Of padded batches in two directions, no way gives the right answer.
    assert all((directions == 1) == (way in ways) for way in ("rnncls padded", "textbook padded"))
    assert max(differences.values()) < 1e-5

    # A way that is not there is named in the table, with the reason.
    missing = measuring.missing(regime)
    assert missing.keys().isdisjoint(ways)
    assert "rnncls captured" in missing
    result = {"us": [2.0, 3.0], "first_step_s": 1.0, "cuda_mib": 0, "peak_mib": 5, "before_mib": 1}
    results = dict.fromkeys(ways, result)
    floors = {"torch": 1.0, "rnncls": 0.5}
    lines = table("small", regime, results, missing, floors).splitlines()
    assert [line.split("|")[1].strip() for line in lines[4:]] == [*ways, *missing]
    (captured,) = (line for line in lines if "rnncls captured" in line)
    assert "not available: the device is cpu" in captured

    of_regimes = {name: {"results": results, "floors_us": floors} for name in ("one", "other")}
    head, _, *rows = overview(of_regimes).splitlines()
    assert len(rows) == 2
    assert all(row.count("|") == head.count("|") for row in rows)


@pytest.mark.slow
def test_evaluation_and_prediction_are_measured_against_a_plain_loop(tmp_path: Path) -> None:
    seconds = measure_inference("gru", 20, 1, tmp_path)
    assert all(own[0] > 0 for own in seconds.values())
    assert len(inference_table({"gru": seconds}, 20).splitlines()) == 4 + len(seconds)

    # The loop is written by hand: it is right if it says what `rnncls predict` says.
    own = (tmp_path / "own.jsonl").read_text().splitlines()
    plain = (tmp_path / "plain.jsonl").read_text().splitlines()
    assert len(own) == 20
    for one, other in zip(map(json.loads, own), map(json.loads, plain), strict=True):
        assert str(one["label"]) == str(other["label"])
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


@pytest.mark.slow
def test_the_ingredients_of_length_generalisation_are_measured() -> None:
    taken_us = measure_ingredients("rnn", 5, rounds=2, steps=3)
    assert list(taken_us) == list(WAYS)
    assert all(len(own) == 2 and min(own) > 0 for own in taken_us.values())
    assert len(ingredients_table({"rnn, 1-5": taken_us}).splitlines()) == 4 + len(taken_us)
