"""What every view begins with: the checkpoint that is looked into, and its model."""

from typing import Any

from rnncls.errors import on_one_line
from rnncls.inspect.subject import Subject
from rnncls.system.rows import shortened
from rnncls.system.shown import WIDTH, counted

WIDTH_OF_NAME = 10  # of the names in front of the lines

# What the head sees, by the pooling. Of the last state nothing is said.
_SUMMARIES = {
    "mean": "the mean of the last layer's states",
    "max": "the largest of the last layer's states, by unit",
    "last_mean_max": "last state, mean and largest",
}

# What a layer is, by the mode of its nn.RNNBase.
_CELLS = {"RNN_TANH": "RNN, tanh", "RNN_RELU": "RNN, relu", "LSTM": "LSTM", "GRU": "GRU"}


def heading_of(subject: Subject, **more: str) -> str:
    """Return a line about the checkpoint, one about its model, and those that are given by name."""
    checkpoint = subject.checkpoint
    step = f", step {checkpoint.state.step:,}"
    path = shortened(on_one_line(checkpoint.path), WIDTH - WIDTH_OF_NAME - 2 - len(step))
    lines = {"checkpoint": f"{path}{step}", "model": _model(subject)}

    network = subject.network
    if network.pooling != "last":
        lines["head sees"] = f"{_SUMMARIES[network.pooling]} (model.pooling: {network.pooling})"
    if network.initial_state is not None:
        name = "h_0, c_0" if network.rnn.mode == "LSTM" else "h_0"
        lines[name] = "trained, not zeros (model.initial_state: learned)"
    lines |= more
    return "\n".join(f"{name:<{WIDTH_OF_NAME}}  {line}" for name, line in lines.items())


def _model(subject: Subject) -> str:
    """Return the kind of model, and its sizes."""
    network = subject.network
    rnn = network.rnn
    kind = _CELLS[rnn.mode] + (", both directions" if rnn.bidirectional else "")
    layers = f"{counted(rnn.num_layers, 'layer')} of {counted(rnn.hidden_size, 'unit')}"
    classes = counted(network.head.out_features, "class")
    return f"{kind}, {layers}, {classes}"


def about(subject: Subject) -> dict[str, Any]:
    """Return the same for programs, with the labels of all classes."""
    checkpoint = subject.checkpoint
    network = subject.network
    rnn = network.rnn
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.state.step,
        "cell": checkpoint.config.model.cell,
        "mode": rnn.mode,
        "num_layers": rnn.num_layers,
        "num_directions": network.num_directions,
        "hidden_size": rnn.hidden_size,
        "embedding_dim": network.embedding.embedding_dim,
        "pooling": network.pooling,
        "initial_state": "zeros" if network.initial_state is None else "learned",
        "labels": list(subject.predictor.labels),
    }
