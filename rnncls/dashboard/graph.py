"""The graph of a model, as TensorBoard shows it.

It is made from the model's parts and parameters, not traced from a forward pass. What a trace has
is one operation for all layers and directions of a recurrence, with a node for every read of an
attribute, and tracing runs the model. Here each layer and direction is a node of its own, with the
parameters that it reads, and nothing runs.
"""

from collections.abc import Sequence

from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT
from tensorboard.compat.proto.versions_pb2 import VersionDef

from rnncls.data import Task
from rnncls.model.classifier import RNNClassifier
from rnncls.model.pooling import parts_of

# TensorBoard refuses to show a graph without a producer; torch writes this one.
PRODUCER = 22


class Nodes:
    """The nodes of a graph, in the order in which they are added."""

    def __init__(self, model: RNNClassifier) -> None:
        self.found: list[NodeDef] = []
        self._shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}

    def add(
        self,
        name: str,
        operation: str,
        inputs: Sequence[str],
        shape: Sequence[int],
        **attributes: object,
    ) -> str:
        """Add a node and return its name. Slashes in the name make boxes that can be opened."""
        sizes = [TensorShapeProto.Dim(size=size) for size in shape]
        of_output = TensorShapeProto(dim=sizes)
        attr = {
            # What stands at the edges.
            "_output_shapes": AttrValue(list=AttrValue.ListValue(shape=[of_output])),
            "dtype": AttrValue(type=DT_FLOAT),
        }
        for key, value in attributes.items():
            attr[key] = AttrValue(s=str(value).encode())
        self.found.append(NodeDef(name=name, op=operation, input=inputs, attr=attr))
        return name

    def parameter(self, box: str, name: str) -> str:
        """Add a parameter by its name in the checkpoint, and return its node's name."""
        short = name.rpartition(".")[2]
        return self.add(f"{box}/{short}", "Parameter", (), self._shapes[name], parameter=name)


def graph_of(model: RNNClassifier, task: Task) -> GraphDef:
    """Return the graph of the model: what computes what, in which shapes.

    Shapes are those of a full training batch, padded to its longest sequence.
    """
    nodes = nodes_of(model, task.config.train.batch_size, task.longest)
    return GraphDef(node=nodes, versions=VersionDef(producer=PRODUCER))


def nodes_of(model: RNNClassifier, rows: int, steps: int) -> list[NodeDef]:
    """Return the nodes of the graph, for `rows` sequences of `steps` tokens."""
    nodes = Nodes(model)
    tokens = nodes.add("tokens", "Input", (), (rows, steps))
    lengths = nodes.add("lengths", "Input", (), (rows,))

    inputs = _add_inputs(nodes, model, tokens, (rows, steps))
    data = _add_layers(nodes, model, inputs, lengths, (rows, steps))
    summary = _add_pooling(nodes, model, inputs, data, lengths, rows)
    of_head = [nodes.parameter("head", name) for name in ("head.weight", "head.bias")]
    num_classes = model.head.out_features
    logits = nodes.add("head/linear", "Linear", (summary, *of_head), (rows, num_classes))
    nodes.add("logits", "Output", (logits,), (rows, num_classes))
    return nodes.found


def _add_inputs(nodes: Nodes, model: RNNClassifier, tokens: str, shape: tuple[int, int]) -> str:
    """Add what is read of each token and return its name."""
    of_rows = (*shape, model.embedding.embedding_dim)
    weight = nodes.parameter("embedding", "embedding.weight")
    parts = [nodes.add("embedding/rows", "Embedding", (tokens, weight), of_rows)]
    if model.ngram_embedding is not None:
        weight = nodes.parameter("ngrams", "ngram_embedding.weight")
        hashed = nodes.add("ngrams/hash", "Hash", (tokens,), (*shape, len(model.ngrams)))
        parts.append(nodes.add("ngrams/sum", "EmbeddingBag", (hashed, weight), of_rows))
    if model.position_embedding is not None:
        weight = nodes.parameter("positions", "position_embedding.weight")
        parts.append(nodes.add("positions/rows", "Embedding", (weight,), of_rows))
    return parts[0] if len(parts) == 1 else nodes.add("inputs", "Add", parts, of_rows)


def _add_layers(
    nodes: Nodes, model: RNNClassifier, data: str, lengths: str, shape: tuple[int, int]
) -> str:
    """Add the layers of the recurrence and return the name of the last one's outputs."""
    rnn = model.rnn
    start = []
    if model.initial_state is not None:
        start.append(nodes.parameter("rnn", "initial_state"))

    width = model.num_directions * rnn.hidden_size
    for layer in range(rnn.num_layers):
        if layer > 0 and model.dropout > 0:
            data = nodes.add(
                f"rnn/dropout_{layer}", "Dropout", (data,), (*shape, width), p=model.dropout
            )

        outputs = []
        for direction in ("forwards", "backwards")[: model.num_directions]:
            box = f"rnn/layer_{layer}/{direction}"
            ending = f"l{layer}_reverse" if direction == "backwards" else f"l{layer}"
            names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if rnn.bias else [])]
            weights = [nodes.parameter(box, f"rnn.{name}_{ending}") for name in names]
            # Where a sequence ends, backwards begins.
            more = [lengths] if direction == "backwards" else []
            states = nodes.add(
                f"{box}/states",
                rnn.mode,
                (data, *weights, *start, *more),
                (*shape, rnn.hidden_size),
            )
            outputs.append(states)

        (data,) = (
            outputs
            if len(outputs) == 1
            else [nodes.add(f"rnn/layer_{layer}/both", "Concatenate", outputs, (*shape, width))]
        )
    return data


def _add_pooling(
    nodes: Nodes, model: RNNClassifier, inputs: str, data: str, lengths: str, rows: int
) -> str:
    """Add what makes one vector of each sequence, and return its name."""
    width = model.num_directions * model.rnn.hidden_size
    parts = []
    for part in parts_of(model.pooling):
        parts.append(
            nodes.add(f"pooling/{part}", part.capitalize(), (data, lengths), (rows, width))
        )
    if model.skip:
        size = (rows, model.embedding.embedding_dim)
        parts.append(nodes.add("skip/mean", "Mean", (inputs, lengths), size))
    if len(parts) == 1:
        return parts[0]
    return nodes.add("pooling/all", "Concatenate", parts, (rows, model.summary_size))
