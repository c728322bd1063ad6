"""What a model consists of: layers, shapes and parameters, without building it."""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from rnncls.config import Config
from rnncls.config.schema import most_positions
from rnncls.model.build import tensor_shapes

FLOAT32_BYTES = 4

# Shapes are as they are printed: B sequences of T tokens each.
INPUT = "(B, T)"

_MEAN_OF_INPUTS = "mean of the inputs"


@dataclass(frozen=True)
class Layer:
    """One layer: what goes in and what comes out, for B sequences of T tokens."""

    name: str  # of the module, such as "rnn"; layers of one module are numbered
    kind: str  # such as "Embedding" or "GRU, both directions"
    input: str  # a shape, such as "(B, T, 10)"
    output: str


@dataclass(frozen=True)
class TensorSize:
    """One tensor of the state_dict."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    share: float  # of all parameters


@dataclass(frozen=True)
class ModelDescription:
    """The layers and tensors of a model."""

    layers: list[Layer]
    tensors: list[TensorSize]
    parameters: int
    bytes: int  # of the weights, as float32

    def to_json(self) -> dict[str, Any]:
        """Return everything by name; a shape of a tensor is a list."""
        return asdict(self)


def describe_model(config: Config, sizes: tuple[int, int]) -> ModelDescription:
    """Describe the model of a config; nothing is allocated.

    `sizes`: (number of different tokens, number of classes).
    """
    shapes = tensor_shapes(config, sizes)
    total = sum(prod(shape) for shape in shapes.values())
    tensors = []
    for name, shape in shapes.items():
        parameters = prod(shape)
        tensors.append(TensorSize(name, shape, parameters, parameters / total))
    return ModelDescription(_layers(config, sizes), tensors, total, FLOAT32_BYTES * total)


def _layers(config: Config, sizes: tuple[int, int]) -> list[Layer]:
    num_tokens, num_classes = sizes
    model = config.model

    kind = model.cell.upper()
    if model.cell == "rnn":
        kind += f", {model.nonlinearity}"
    if model.bidirectional:
        kind += ", both directions"
    if model.initial_state == "learned":
        kind += ", trained h_0 and c_0" if model.cell == "lstm" else ", trained h_0"

    width = f"(B, T, {model.embedding_dim})"
    layers = _input_layers(config, num_tokens, width)
    classes = f"(B, {num_classes})"
    inputs = f"(B, {model.embedding_dim})"
    if model.cell == "none":
        layers.append(Layer("", _MEAN_OF_INPUTS, width, inputs))
        return [*layers, Layer("head", "Linear", inputs, classes)]

    # A layer gives the states of both directions to the next one.
    state_size = model.hidden_size * (2 if model.bidirectional else 1)
    for number in range(model.num_layers):
        name = "rnn" if model.num_layers == 1 else f"rnn, layer {number}"
        output = f"(B, T, {state_size})"
        layers.append(Layer(name, kind, width, output))
        width = output

    # Each sequence has its own last token; the backward direction ends at the first one.
    what = "state at the last token"
    if model.bidirectional:
        what = "states at the last and the first token"
    if model.pooling == "last_mean_max":
        what += ", mean, largest"
        state_size *= 3
    elif model.pooling != "last":
        what = {"mean": "mean of the states", "max": "largest of the states"}[model.pooling]
    layers.append(Layer("", what, width, f"(B, {state_size})"))
    if model.skip:
        # What the first layer reads goes to the head beside what the last one says.
        layers.append(Layer("", _MEAN_OF_INPUTS, f"(B, T, {model.embedding_dim})", inputs))
        state_size += model.embedding_dim
    layers.append(Layer("head", "Linear", f"(B, {state_size})", classes))
    return layers


def _input_layers(config: Config, num_tokens: int, width: str) -> list[Layer]:
    """Return the tables whose rows add up to what is read of a token, (B, T, embedding_dim)."""
    model = config.model
    layers = [Layer("embedding", f"Embedding of {num_tokens:,} tokens", INPUT, width)]
    if model.ngrams:
        lengths = ", ".join(map(str, model.ngrams))
        kind = f"+ n-grams of {lengths} tokens: {model.ngram_table:,} rows"
        layers.append(Layer("ngram_embedding", kind, INPUT, width))
    if model.positions == "learned":
        kind = f"+ positions: {most_positions(config.data):,}"
        layers.append(Layer("position_embedding", kind, INPUT, width))
    return layers
