"""The cells as graphs: the nodes and edges of one time step of rnn, gru and lstm."""

from typing import Literal, NamedTuple

Kind = Literal[
    "token",
    "weights",
    "operation",
    "function",
    "gate",
    "state",
    "start",
    "trained",
    "cell",
    "pooling",
    "logits",
    "gap",
]


class Part(NamedTuple):
    """A node of one step of a cell. In its label {t} is the step, and {p} the one before."""

    role: str
    kind: Kind
    label: str


class CellGraph(NamedTuple):
    """One step of a cell. An edge ("h-1", ...) comes from the state of the step before."""

    parts: tuple[Part, ...]
    edges: tuple[tuple[str, ...], ...]  # source, target and, for some, a label
    states: tuple[Literal["h", "c"], ...]
    num_blocks: int  # W_ih has num_blocks * hidden_size rows
    equations: tuple[str, ...]


_WEIGHTS = (
    Part("W_ih", "weights", "W_ih {x}_{t}{b_ih}"),
    Part("W_hh", "weights", "W_hh h_{p}{b_hh}"),
    Part("sum", "operation", "+"),
)

_SUM = (("h-1", "W_hh"), ("W_ih", "sum"), ("W_hh", "sum"))

CELLS = {
    "rnn": CellGraph(
        parts=(*_WEIGHTS, Part("f", "function", "{f}"), Part("h", "state", "h_{t}")),
        edges=(*_SUM, ("sum", "f"), ("f", "h")),
        states=("h",),
        num_blocks=1,
        equations=("h_t = {f}(W_ih {x}_t + W_hh h_({p}){b})",),
    ),
    # W_hh h has three parts. Those of r and z are added to W_ih x; that of n is first multiplied
    # with r.
    "gru": CellGraph(
        parts=(
            *_WEIGHTS,
            Part("r", "gate", "{sigma}\nr_{t}"),
            Part("z", "gate", "{sigma}\nz_{t}"),
            Part("reset", "operation", "⊙"),
            Part("candidate", "operation", "+"),
            Part("n", "function", "tanh\nn_{t}"),
            Part("new", "operation", "⊙"),
            Part("kept", "operation", "⊙"),
            Part("mix", "operation", "+"),
            Part("h", "state", "h_{t}"),
        ),
        edges=(
            *_SUM,
            ("sum", "r"),
            ("sum", "z"),
            ("r", "reset"),
            ("W_hh", "reset"),
            ("W_ih", "candidate"),
            ("reset", "candidate"),
            ("candidate", "n"),
            ("n", "new"),
            ("z", "new", "1 - z"),
            ("z", "kept", "z"),
            ("h-1", "kept"),
            ("new", "mix"),
            ("kept", "mix"),
            ("mix", "h"),
        ),
        states=("h",),
        num_blocks=3,
        equations=(
            "r, z = {sigma}(W_ih {x}_t + W_hh h_({p}){b})",
            "n = tanh(W_ih {x}_t{b_ih} + r ⊙ (W_hh h_({p}){b_hh}))",
            "h_t = (1 - z) ⊙ n + z ⊙ h_({p})",
        ),
    ),
    "lstm": CellGraph(
        parts=(
            *_WEIGHTS,
            Part("f", "gate", "{sigma}\nf_{t}"),
            Part("i", "gate", "{sigma}\ni_{t}"),
            Part("g", "function", "tanh\ng_{t}"),
            Part("o", "gate", "{sigma}\no_{t}"),
            Part("kept", "operation", "⊙"),
            Part("new", "operation", "⊙"),
            Part("mix", "operation", "+"),
            Part("c", "state", "c_{t}"),
            Part("tanh", "function", "tanh"),
            Part("out", "operation", "⊙"),
            Part("h", "state", "h_{t}"),
        ),
        edges=(
            *_SUM,
            ("sum", "f"),
            ("sum", "i"),
            ("sum", "g"),
            ("sum", "o"),
            ("f", "kept"),
            ("c-1", "kept"),
            ("i", "new"),
            ("g", "new"),
            ("kept", "mix"),
            ("new", "mix"),
            ("mix", "c"),
            ("c", "tanh"),
            ("tanh", "out"),
            ("o", "out"),
            ("out", "h"),
        ),
        states=("h", "c"),
        num_blocks=4,
        equations=(
            "i, f, o = {sigma}(W_ih {x}_t + W_hh h_({p}){b})",
            "g = tanh(W_ih {x}_t + W_hh h_({p}){b})",
            "c_t = f ⊙ c_({p}) + i ⊙ g",
            "h_t = o ⊙ tanh(c_t)",
        ),
    ),
}
