"""What every view begins with: the checkpoint that is looked into, and its model."""

from typing import Any

from rnncls.errors import on_one_line
from rnncls.inspect.subject import Subject
from rnncls.model.classifier import RNNClassifier
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
    if network.needs_whole:
        lines["reads"] = _read(network)
    lines |= _seen(network)
    if network.initial_state is not None:
        name = "h_0, c_0" if network.rnn.mode == "LSTM" else "h_0"
        lines[name] = "trained, not zeros (model.initial_state: learned)"
    lines |= more
    return "\n".join(f"{name:<{WIDTH_OF_NAME}}  {line}" for name, line in lines.items())


def _read(network: RNNClassifier) -> str:
    """Return what is read of a token, beside its embedding."""
    parts = ["embedding"]
    if network.ngram_embedding is not None:
        lengths = ", ".join(map(str, network.ngrams))
        rows = network.ngram_embedding.num_embeddings
        parts.append(f"n-grams of {lengths} (table of {rows:,})")
    if network.num_positions is not None:
        parts.append(f"position (of {network.num_positions:,})")
    return " + ".join(parts)


def _seen(network: RNNClassifier) -> dict[str, str]:
    """Return what the head sees; nothing for the last state alone."""
    if not network.is_recurrent:
        return {"head sees": "the mean of what is read (model.cell: none)"}
    lines = {}
    if network.pooling != "last":
        pooling = network.pooling
        lines["head sees"] = f"{_SUMMARIES[pooling]} (model.pooling: {pooling})"
    if network.skip:
        lines.setdefault("head sees", "the last state")
        lines["beside it"] = "the mean of what is read (model.skip: true)"
    return lines


def _model(subject: Subject) -> str:
    """Return the kind of model, and its sizes."""
    network = subject.network
    rnn = network.rnn
    if not network.is_recurrent:
        width = counted(network.embedding.embedding_dim, "number")
        return f"no recurrent layers, {width} of each token, {_classes(network)}"
    kind = _CELLS[rnn.mode] + (", both directions" if rnn.bidirectional else "")
    layers = f"{counted(rnn.num_layers, 'layer')} of {counted(rnn.hidden_size, 'unit')}"
    return f"{kind}, {layers}, {_classes(network)}"


def _classes(network: RNNClassifier) -> str:
    return counted(network.head.out_features, "class")


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
        "skip": network.skip,
        "ngrams": list(network.ngrams),
        "num_positions": network.num_positions,
        "initial_state": "zeros" if network.initial_state is None else "learned",
        "labels": list(subject.predictor.labels),
    }
