"""The smallest network, worked through by hand.

It says which of a and b came first in a sequence of the tokens a, b and c, whatever comes after: it
is right for every sequence of three. Unit 1 of the state gets 1 for a and -1 for b, and its own
memory, with weight 3, outvotes them later. Unit 2 follows the tokens.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pack_sequence

from rnncls.errors import Problem, RnnclsError
from rnncls.model.classifier import RNNClassifier
from rnncls.model.probes import gradients_through_time

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]

TOKENS = ("a", "b", "c")
CLASSES = ("a", "b")  # the token that came first

EMBEDDING: Matrix = ((1, 0), (-1, 0), (0, 1))
W_IH: Matrix = ((1, 0), (0.5, 1))
B_IH: Vector = (0, 0.5)
W_HH: Matrix = ((3, 0), (1, 0.5))
B_HH: Vector = (0, -0.5)
W: Matrix = ((1, -0.5), (-1, 0.5))
B: Vector = (0.1, -0.1)

SEQUENCE = ("a", "b", "b")
LABEL = "a"
OTHER_ORDER = ("b", "b", "a")

# Rounding in float64 is far below it, and an error of a formula far above.
TOLERANCE = 1e-12

# Characters of a line: what is computed, and the formula behind it.
NAME_WIDTH = 16
FORMULA_WIDTH = 44


class Step(NamedTuple):
    """One time step, forwards and back."""

    token: str
    x: Vector  # its embedding
    from_input: Vector  # W_ih x_t + b_ih
    from_memory: Vector  # W_hh h_(t-1) + b_hh
    total: Vector  # their sum
    h: Vector  # its tanh
    gradient: Vector  # dL/dh_t
    gradient_of_total: Vector  # dL/d(sum), through tanh


class Demo(NamedTuple):
    """Every number of the network for one sequence."""

    steps: list[Step]
    logits: Vector
    probabilities: Vector
    loss: float  # in nats
    gradient_of_logits: Vector
    other_order: float  # the probability of the same class for the tokens in another order

    def to_text(self) -> str:
        """Return each number with its formula, for a pocket calculator."""
        lines = [
            "The smallest network: 3 tokens, embedding 2, hidden size 2, tanh, 2 classes.",
            f"Which of a and b came first? The sequence: {' '.join(SEQUENCE)}. "
            f"The right answer: {LABEL}.",
            "Unit 1 gets 1 for a, -1 for b; its memory, with weight 3, outvotes what follows.",
            "Numbers are rounded to 4 digits, so a calculator may differ in the last one.",
            "",
            *_weights(),
            "",
            "h_0 = (0, 0), and h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)",
        ]

        before: Vector = (0, 0)
        for t, step in enumerate(self.steps, 1):
            lines += _forward(t, step, before)
            before = step.h

        lines += ["", *self._answer(), "", *self._backward(), "", *self._lessons()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return every number, and the weights."""
        return {
            "tokens": TOKENS,
            "classes": CLASSES,
            "weights": {
                "embedding": EMBEDDING,
                "W_ih": W_IH,
                "b_ih": B_IH,
                "W_hh": W_HH,
                "b_hh": B_HH,
                "W": W,
                "b": B,
            },
            "sequence": SEQUENCE,
            "label": LABEL,
            "steps": [step._asdict() for step in self.steps],
            "logits": self.logits,
            "probabilities": self.probabilities,
            "loss": self.loss,
            "gradient_of_logits": self.gradient_of_logits,
            "other_order": {"sequence": OTHER_ORDER, "probability": self.other_order},
        }

    def _answer(self) -> list[str]:
        """Return the lines from the last state to the loss."""
        powers = [f"exp({logit:.4f})" for logit in self.logits]
        fractions = [f"{power} / ({' + '.join(powers)})" for power in powers]
        right = CLASSES.index(LABEL)
        return [
            "the answer, for a and for b",
            *_rows("logits W h_3 + b", _sums(W, self.steps[-1].h, B), self.logits),
            *_rows("p = softmax", fractions, self.probabilities),
            *_rows("loss L", [f"-ln({_exact(self.probabilities[right])})"], [self.loss]),
        ]

    def _backward(self) -> list[str]:
        """Return the lines of the gradient, from the loss back to the first state."""
        wanted = [1 if name == LABEL else 0 for name in CLASSES]
        differences = [
            f"{_exact(p)} - {y}" for p, y in zip(self.probabilities, wanted, strict=True)
        ]
        last = self.steps[-1]
        lines = [
            "back through time: s_t is the sum in step t, and y = (1, 0) the right answer",
            *_rows("dL/dlogits p - y", differences, self.gradient_of_logits),
            *_rows("dL/dh_3", _sums(_transposed(W), self.gradient_of_logits), last.gradient),
        ]
        for t in (3, 2):
            step = self.steps[t - 1]
            slopes = [
                f"{_exact(gradient)} * (1 - {_exact(h)}^2)"
                for gradient, h in zip(step.gradient, step.h, strict=True)
            ]
            sums = _sums(_transposed(W_HH), step.gradient_of_total)
            lines += _rows(f"dL/ds_{t}", slopes, step.gradient_of_total)
            lines += _rows(f"dL/dh_{t - 1}", sums, self.steps[t - 2].gradient)
        return lines

    def _lessons(self) -> list[str]:
        norms = ", ".join(f"{math.hypot(*step.gradient):.4f}" for step in self.steps)
        other = " ".join(OTHER_ORDER)
        return [
            f"|dL/dh_t| for t = 1, 2, 3: {norms}: less with each step back.",
            f"The same tokens as {other}: p(a) = {self.other_order:.4f}. The first one decides.",
        ]


def demo() -> Demo:
    """Run the smallest network by formulas, and check each number that RNNClassifier has as well.

    Raises: RnnclsError if they differ, which is a bug.
    """
    states = _run(SEQUENCE)
    logits = _affine(W, states[-1].h, B)
    probabilities = _softmax(logits)

    # Back: the cross-entropy of a softmax, a linear layer, and tanh' = 1 - tanh^2 in each step.
    wanted = [1 if name == LABEL else 0 for name in CLASSES]
    of_logits = tuple(p - y for p, y in zip(probabilities, wanted, strict=True))
    gradient = _affine(_transposed(W), of_logits)
    steps: list[Step] = []
    for step in reversed(states):
        of_total = tuple(g * (1 - h**2) for g, h in zip(gradient, step.h, strict=True))
        steps.insert(0, step._replace(gradient=gradient, gradient_of_total=of_total))
        gradient = _affine(_transposed(W_HH), of_total)

    result = Demo(
        steps=steps,
        logits=logits,
        probabilities=probabilities,
        loss=-math.log(probabilities[CLASSES.index(LABEL)]),
        gradient_of_logits=of_logits,
        other_order=_softmax(_affine(W, _run(OTHER_ORDER)[-1].h, B))[CLASSES.index(LABEL)],
    )
    _require_equal(result, network())
    return result


def network() -> RNNClassifier:
    """Return the smallest network as a model, in float64."""
    model = RNNClassifier(
        len(TOKENS), len(CLASSES), embedding_dim=2, hidden_size=2, nonlinearity="tanh"
    ).double()
    weights = {
        "embedding.weight": EMBEDDING,
        "rnn.weight_ih_l0": W_IH,
        "rnn.bias_ih_l0": B_IH,
        "rnn.weight_hh_l0": W_HH,
        "rnn.bias_hh_l0": B_HH,
        "head.weight": W,
        "head.bias": B,
    }
    model.load_state_dict(
        {name: torch.tensor(values, dtype=torch.float64) for name, values in weights.items()}
    )
    return model.eval()


def _run(tokens: Sequence[str]) -> list[Step]:
    """Return the steps of a sequence, without gradients yet."""
    steps = []
    h: Vector = (0, 0)
    for token in tokens:
        x = EMBEDDING[TOKENS.index(token)]
        from_input = _affine(W_IH, x, B_IH)
        from_memory = _affine(W_HH, h, B_HH)
        total = tuple(map(sum, zip(from_input, from_memory, strict=True)))
        h = tuple(map(math.tanh, total))
        steps.append(Step(token, x, from_input, from_memory, total, h, (), ()))
    return steps


def _require_equal(result: Demo, model: RNNClassifier) -> None:
    """Raise RnnclsError unless the model has the same logits and gradients."""
    ids = torch.tensor([TOKENS.index(token) for token in SEQUENCE])
    tokens = pack_sequence([ids])
    with torch.no_grad():
        logits = model(tokens)[0]
    label = torch.tensor([CLASSES.index(LABEL)])
    ((gradients,),) = gradients_through_time(model, tokens, label)

    found = [*logits.tolist(), *gradients.flatten().tolist()]
    expected = [*result.logits]
    for step in result.steps:
        expected += step.gradient
    worst = max(abs(one - other) for one, other in zip(found, expected, strict=True))
    if not worst <= TOLERANCE:
        what = "the formulas and the model disagree"
        problem = Problem(
            what, "--demo", expected=f"at most {TOLERANCE:g}", found=f"{worst:.2g}", id="R35"
        )
        raise RnnclsError(problem)


def _affine(matrix: Matrix, vector: Vector, bias: Vector = (0, 0)) -> Vector:
    """Return matrix * vector + bias."""
    return tuple(
        sum(w * v for w, v in zip(row, vector, strict=True)) + b
        for row, b in zip(matrix, bias, strict=True)
    )


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


def _softmax(logits: Vector) -> Vector:
    powers = [math.exp(logit) for logit in logits]
    return tuple(power / sum(powers) for power in powers)


# --- lines


def _weights() -> list[str]:
    """Return the lines of all weights."""
    embeddings = [f"{token} = {_vector(x)}" for token, x in zip(TOKENS, EMBEDDING, strict=True)]
    return [
        "embeddings x:  " + "   ".join(embeddings),
        *_side_by_side({"W_ih": W_IH, "b_ih": B_IH, "W_hh": W_HH, "b_hh": B_HH}),
        *_side_by_side({"W": W, "b": B}),
    ]


def _side_by_side(weights: dict[str, Matrix | Vector]) -> list[str]:
    """Return two lines with matrices, and vectors as columns."""
    lines = []
    for row in range(2):
        cells = []
        for name, values in weights.items():
            one = values[row]
            numbers = one if isinstance(one, tuple) else (one,)
            text = " ".join(f"{value:4g}" for value in numbers)
            beginning = f"{name} =" if row == 0 else " " * len(f"{name} =")
            cells.append(f"{beginning} [{text}]")
        lines.append("  ".join(cells))
    return lines


def _forward(t: int, step: Step, before: Vector) -> list[str]:
    """Return the lines of one time step; `before` is h_(t-1)."""
    tanhs = []
    for one, other, total in zip(step.from_input, step.from_memory, step.total, strict=True):
        second = f"({other:.4f})" if other < 0 else f"{other:.4f}"
        tanhs.append(f"tanh({one:.4f} + {second}) = tanh({total:.4f})")
    return [
        "",
        f"step {t}, token {step.token}: x_{t} = {_vector(step.x)}",
        *_rows(f"W_ih x_{t} + b_ih", _sums(W_IH, step.x, B_IH), step.from_input),
        *_rows(f"W_hh h_{t - 1} + b_hh", _sums(W_HH, before, B_HH), step.from_memory),
        *_rows(f"h_{t}", tanhs, step.h),
    ]


def _rows(name: str, formulas: Sequence[str], results: Sequence[float]) -> list[str]:
    """Return a line for each unit: the name in the first, a formula, and what it gives."""
    lines = []
    for number, (formula, result) in enumerate(zip(formulas, results, strict=True)):
        first = name if number == 0 else ""
        lines.append(f"  {first:<{NAME_WIDTH}} {formula:<{FORMULA_WIDTH}} = {result:7.4f}")
    return lines


def _sums(matrix: Matrix, vector: Vector, bias: Vector | None = None) -> list[str]:
    """Return the formula of matrix * vector + bias for each unit."""
    formulas = []
    for number, row in enumerate(matrix):
        terms = [f"{_exact(w)}*{_exact(v)}" for w, v in zip(row, vector, strict=True)]
        if bias is not None:
            terms.append(_exact(bias[number]))
        formulas.append(" + ".join(terms))
    return formulas


def _exact(value: float) -> str:
    """Return a round number as it is, and others with 4 digits; in brackets if negative."""
    text = f"{value:g}" if value == round(value, 1) else f"{value:.4f}"
    return f"({text})" if value < 0 else text


def _vector(values: Vector) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
