"""How much each token of a sequence matters for a class."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnncls.data import pack
from rnncls.data.sequences import cut_for_evaluation
from rnncls.inspect.subject import rows_together
from rnncls.model.classifier import RNNClassifier, ignore_compaction, outputs_of_direction

# Each token is left out in a run of its own: the work grows with the square of the length.
MOST_LEFT_OUT = 512  # tokens

# The derivative goes back step by step: so many take seconds in three layers of two directions.
MOST_GRADIENT = 10_000  # tokens

PIECE_STEPS = 2**11  # time steps whose derivative is in memory at a time


class Importance(NamedTuple):
    """How much each of T tokens matters for the log-probability of a class, in nats."""

    label: int  # the number of the class

    # log p of the whole sequence minus log p without this token: positive where the token speaks
    # for the class. (T,); None where the sequence is too long, or where nothing would be left.
    left_out: list[float] | None

    # The gradient of log p with respect to the token's embedding, times that embedding, (T,); None
    # where the sequence is too long.
    gradient: list[float] | None


def importance_of(network: RNNClassifier, ids: list[int], label: int) -> Importance:
    """Return how much each token matters for the class `label`.

    The network is in evaluation mode, and stays as it is. Leaving out is what a person would try
    (Li, Monroe and Jurafsky 2016, "Understanding neural networks through representation erasure").
    Gradient times input says what the logarithm of the probability would lose, were it linear, if
    the token's embedding became zero (Shrikumar, Greenside and Kundaje 2017, "Learning important
    features through propagating activation differences").

    Beyond MOST_LEFT_OUT tokens no token is left out, and beyond MOST_GRADIENT there is no gradient.
    """
    tokens = torch.tensor(ids)
    left_out = None
    if 1 < len(ids) <= MOST_LEFT_OUT:
        left_out = _left_out(network, tokens, label).tolist()

    gradient = None
    if len(ids) <= MOST_GRADIENT:
        embeddings, gradients = gradient_at_embeddings(network, tokens, label)
        gradient = (embeddings * gradients).sum(1).tolist()
    return Importance(label, left_out, gradient)


@torch.inference_mode()
def _left_out(network: RNNClassifier, ids: Tensor, label: int) -> Tensor:
    """Return log p of a class less log p without each of at least two tokens (T,), (T,)."""
    length = len(ids)

    # Row t lacks token t: (T, T - 1).
    all_but_one = ~torch.eye(length, dtype=torch.bool)
    rows = ids.expand(length, length)[all_but_one].view(length, length - 1)

    parts = []
    for first, last in cut_for_evaluation([length - 1] * length):
        for some in torch.split(rows[first:last], rows_together(network)):
            parts.append(_log_probabilities(network, some, label))
    return _log_probabilities(network, ids.unsqueeze(0), label) - torch.cat(parts)


def _log_probabilities(network: RNNClassifier, rows: Tensor, label: int) -> Tensor:
    """Return log p of a class for sequences (B, T) of one length, (B,) in float64."""
    lengths = torch.full((len(rows),), rows.shape[1])
    batch = pack(rows, lengths, labels=torch.zeros(len(rows)))
    logits: Tensor = network(batch.to(network.device).tokens)

    # In float64: of a probability close to 1 the logarithm is a difference of near numbers.
    return logits.double().log_softmax(1)[:, label].cpu()


def gradient_at_embeddings(
    network: RNNClassifier, ids: Tensor, label: int
) -> tuple[Tensor, Tensor]:
    """Return the embedding of each token (T,), and the gradient of log p with respect to it.

    Both are (T, embedding_dim); p is the probability of the class `label`. The gradient goes back
    through the layers one by one, and in each from piece to piece, whose states are computed again:
    in memory are the states of all layers, and the derivative of PIECE_STEPS steps.
    """
    # The weights of a layer alone are not one piece of memory, which cuDNN warns of.
    ignore_compaction()

    # The caller may be in inference mode, whose tensors have no derivative.
    with torch.inference_mode(False), torch.no_grad():
        rnn = network.rnn
        embeddings = network.embedding(ids.to(network.device))

        # (T, width) each: what a layer gets, and last what the head does.
        inputs = [embeddings]
        starts = []
        for layer in range(rnn.num_layers):
            outputs = []
            of_layer = []
            for direction in range(network.num_directions):
                states, begun = _forward(rnn, layer, direction, inputs[-1])
                outputs.append(states)
                of_layer.append(begun)
            inputs.append(torch.cat(outputs, 1))
            starts.append(of_layer)

        d_outputs = _gradient_at_last_layer(network, inputs.pop(), label)
        for layer in reversed(range(rnn.num_layers)):
            d_inputs = torch.zeros_like(inputs[layer])
            d_states = d_outputs.chunk(network.num_directions, dim=1)
            for direction, d_of_direction in enumerate(d_states):
                begun = starts[layer][direction]
                d_inputs += _backward(rnn, layer, direction, inputs[layer], begun, d_of_direction)
            d_outputs = d_inputs
    return embeddings, d_outputs


def _gradient_at_last_layer(network: RNNClassifier, states: Tensor, label: int) -> Tensor:
    """Return the gradient of log p with respect to the last layer's states (T, D * H), its shape.

    It is zero but for those that the head sees: the last, and in reverse the first.
    """
    hidden_size = network.rnn.hidden_size
    seen = [(-1, slice(0, hidden_size)), (0, slice(hidden_size, None))]
    seen = seen[: network.num_directions]

    summary = torch.cat([states[place] for place in seen]).requires_grad_()
    with torch.enable_grad():
        log_probability = network.head(summary).log_softmax(0)[label]
    (d_summary,) = torch.autograd.grad(log_probability, summary)

    gradient = torch.zeros_like(states)
    for place, part in zip(seen, torch.split(d_summary, hidden_size), strict=True):
        gradient[place] = part
    return gradient


def _forward(
    rnn: nn.RNNBase, layer: int, direction: int, inputs: Tensor
) -> tuple[Tensor, list[Sequence[Tensor]]]:
    """Return the states of one direction (T, H), from (T, width), and that before each piece."""
    zeros = inputs.new_zeros(1, 1, rnn.hidden_size)
    state: Sequence[Tensor] = [zeros, zeros] if rnn.mode == "LSTM" else [zeros]

    begun = []
    outputs = []
    for piece in torch.split(_in_order(inputs, direction), PIECE_STEPS):
        begun.append(state)
        states, state = outputs_of_direction(rnn, layer, direction, piece, state)
        outputs.append(states)
    return _in_order(torch.cat(outputs), direction), begun


def _backward(
    rnn: nn.RNNBase,
    layer: int,
    direction: int,
    inputs: Tensor,
    begun: list[Sequence[Tensor]],
    d_outputs: Tensor,
) -> Tensor:
    """Return the gradient with respect to `inputs` (T, width), given that of the states (T, H)."""
    pieces = torch.split(_in_order(inputs, direction), PIECE_STEPS)
    d_pieces = torch.split(_in_order(d_outputs, direction), PIECE_STEPS)

    # The gradient of the state that a piece hands to the next one; nothing comes after the last.
    d_state = [torch.zeros_like(part) for part in begun[0]]
    found = []
    for piece, start, d_piece in reversed(list(zip(pieces, begun, d_pieces, strict=True))):
        piece = piece.detach().requires_grad_()
        start = [part.detach().requires_grad_() for part in start]
        with torch.enable_grad():
            states, finals = outputs_of_direction(rnn, layer, direction, piece, start)
        d_input, *d_state = torch.autograd.grad(
            [states, *finals], [piece, *start], [d_piece, *d_state]
        )
        found.append(d_input)
    return _in_order(torch.cat(found[::-1]), direction)


def _in_order(rows: Tensor, direction: int) -> Tensor:
    """Return rows (T, width) in the order in which a direction reads them, or back again."""
    return rows.flip(0) if direction == 1 else rows
