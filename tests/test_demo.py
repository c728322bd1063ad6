"""The smallest network: each of its numbers can be found again."""

import itertools
import json
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from rnncls.errors import RnnclsError
from rnncls.inspect import demo as demo_module
from rnncls.inspect.demo import CLASSES, LABEL, SEQUENCE, TOKENS, W, demo, network
from tests.helpers import run_rnncls

# A number in a formula is rounded to 4 digits, and at most 3 times as large in the result.
ROUNDING = 3.5e-4

FUNCTIONS = {"tanh": math.tanh, "exp": math.exp, "ln": math.log, "__builtins__": {}}


def test_it_is_what_torchs_own_cell_and_autograd_give() -> None:
    model = network()
    cell = nn.RNNCell(2, 2, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            parameter.copy_(model.rnn.get_parameter(f"{name}_l0"))

    state = torch.zeros(1, 2, dtype=torch.float64)
    states = []
    for token in SEQUENCE:
        state = cell(model.embedding.weight[TOKENS.index(token)][None], state)
        state.retain_grad()
        states.append(state)
    logits = model.head(state)
    logits.retain_grad()
    loss = nn.CrossEntropyLoss()(logits, torch.tensor([CLASSES.index(LABEL)]))
    loss.backward()

    found = demo()
    assert found.loss == pytest.approx(loss.item(), abs=1e-12)
    assert found.logits == pytest.approx(logits[0].tolist(), abs=1e-12)
    assert found.probabilities == pytest.approx(logits.softmax(1)[0].tolist(), abs=1e-12)
    assert logits.grad is not None
    assert found.gradient_of_logits == pytest.approx(logits.grad[0].tolist(), abs=1e-12)
    for step, wanted in zip(found.steps, states, strict=True):
        assert step.h == pytest.approx(wanted[0].tolist(), abs=1e-12)
        assert wanted.grad is not None
        assert step.gradient == pytest.approx(wanted.grad[0].tolist(), abs=1e-12)


def test_a_calculator_finds_every_number_that_is_printed() -> None:
    done = run_rnncls("explain", "--demo")
    assert done.returncode == 0, done.stderr

    # All between the weights and the conclusions: a formula, perhaps one between, and a result.
    lines = re.findall(r"^  (?:\S.{15}| {16}) (\S.*)$", done.stdout, re.MULTILINE)
    assert len(lines) == 3 * 6 + 5 + 12
    for line in lines:
        *formulas, result = line.replace("^", "**").split(" = ")
        for formula in formulas:
            value = eval(formula, FUNCTIONS)
            assert value == pytest.approx(float(result), abs=ROUNDING), line


def test_each_formula_goes_on_with_the_numbers_above_it() -> None:
    found = demo()
    text = found.to_text()
    # Each of them is a result, and stands in the next formula too.
    for step in found.steps:
        assert all(text.count(f"{value:.4f}") >= 2 for value in step.h)
    for step in found.steps[1:]:
        values = (*step.gradient, *step.gradient_of_total)
        assert all(text.count(f"{value:.4f}") >= 2 for value in values)


def test_the_first_token_decides_in_all_sequences_of_three() -> None:
    model = network()
    for tokens in itertools.product(range(3), repeat=3):
        known = [token for token in tokens if token < 2]
        if known:
            logits = model(pack_sequence([torch.tensor(tokens)]))
            assert logits.argmax() == known[0], tokens


def test_another_order_of_the_same_tokens_has_another_answer() -> None:
    found = demo()
    assert found.probabilities[CLASSES.index(LABEL)] > 0.75
    assert found.other_order < 0.3
    assert sorted(demo_module.OTHER_ORDER) == sorted(SEQUENCE)
    ids = torch.tensor([TOKENS.index(token) for token in demo_module.OTHER_ORDER])
    expected = network()(pack_sequence([ids])).softmax(1)[0, CLASSES.index(LABEL)].item()
    assert found.other_order == pytest.approx(expected, abs=1e-12)


def test_it_fits_on_a_screen_and_json_has_all_numbers() -> None:
    lines = demo().to_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 80

    found = json.loads(run_rnncls("explain", "--demo", "--json").stdout)
    assert found["loss"] == demo().loss
    assert found["weights"]["W"] == [list(row) for row in W]
    for one, step in zip(found["steps"], demo().steps, strict=True):
        assert one["token"] == step.token
        assert one["h"] == list(step.h)
        assert one["gradient"] == list(step.gradient)


@pytest.mark.row("R35", by="unit")
@pytest.mark.parametrize("name", ["head.bias", "rnn.weight_hh_l0"])
def test_a_model_that_disagrees_is_a_bug(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter(name)[0] += 1e-6
    monkeypatch.setattr(demo_module, "network", lambda: model)
    with pytest.raises(RnnclsError) as caught:
        demo()
    assert caught.value.problems[0].id == "R35"
    assert caught.value.exit_code == 1
