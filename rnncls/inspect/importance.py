"""How much each token of a sequence matters for a class."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnncls.model.cells import State
from rnncls.model.classifier import RNNClassifier
from rnncls.model.layers import ignore_compaction, outputs_of_direction
from rnncls.model.probes import state_before, summary_of
from rnncls.predict.logits import logits_in_batches, logits_of, packed_alone, rows_together

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

    # The gradient of log p with respect to what is read of the token, times that, (T,); None where
    # the sequence is too long. An n-gram is read with the token at which it ends.
    gradient: list[float] | None

    def measures(self) -> dict[str, list[float] | None]:
        """Return both by their names."""
        return {"left_out": self.left_out, "gradient": self.gradient}


def importance_of(network: RNNClassifier, ids: list[int], label: int) -> Importance:
    """Return how much each token matters for the class `label`.

    The network is in evaluation mode, and stays as it is. Leaving out is what a person would try
    (Li, Monroe and Jurafsky 2016, "Understanding neural networks through representation erasure").
    Gradient times input says what the logarithm of the probability would lose, were it linear, if
    what is read of the token became zero (Shrikumar, Greenside and Kundaje 2017, "Learning
    important features through propagating activation differences"). That is its embedding, those of
    the n-grams that end with it, and that of its position. Leaving out a token also takes away the
    n-grams that it is in, makes new ones of its neighbours, and moves those behind it.

    Beyond MOST_LEFT_OUT tokens no token is left out, and beyond MOST_GRADIENT there is no gradient.
    """
    left_out = None
    if 1 < len(ids) <= MOST_LEFT_OUT:
        left_out = _left_out(network, ids, label).tolist()

    gradient = None
    if len(ids) <= MOST_GRADIENT:
        tokens = torch.tensor(ids)
        embeddings, gradients = gradient_at_embeddings(network, tokens, label)
        gradient = (embeddings * gradients).sum(1).tolist()
    return Importance(label, left_out, gradient)


@torch.inference_mode()
def _left_out(network: RNNClassifier, ids: list[int], label: int) -> Tensor:
    """Return log p of a class less log p without each of T tokens, at least two, (T,)."""
    all_but_one = [ids[:place] + ids[place + 1 :] for place in range(len(ids))]

    parts = []
    together = rows_together(network)
    for first in range(0, len(ids), together):
        logits = logits_in_batches(network, all_but_one[first : first + together])
        parts.append(_log_probability(logits, label))
    return _log_probability(logits_of(network, [ids]), label) - torch.cat(parts)


def _log_probability(logits: Tensor, label: int) -> Tensor:
    """Return log p of a class, (B,) in float64 on the CPU, by logits (B, N)."""
    # In float64: of a probability close to 1 the logarithm is a difference of near numbers.
    return logits.double().log_softmax(1)[:, label].cpu()


def gradient_at_embeddings(
    network: RNNClassifier, ids: Tensor, label: int
) -> tuple[Tensor, Tensor]:
    """Return what is read of each token (T,), and the gradient of log p with respect to it.

    Both are (T, embedding_dim), with n-grams and positions in them where the model has some; p is
    the probability of the class `label`. The gradient goes back
    through the layers one by one, and in each from piece to piece, whose states are computed again:
    in memory are the states of all layers, and the derivative of PIECE_STEPS steps.
    """
    # The weights of a layer alone are not one piece of memory, which cuDNN warns of.
    ignore_compaction()

    # The caller may be in inference mode, whose tensors have no derivative.
    with torch.inference_mode(False), torch.no_grad():
        rnn = network.rnn
        embeddings = network.embedded(packed_alone(ids.to(network.device)))

        # (T, width) each: what a layer gets, and last what the head does.
        inputs = [embeddings]
        starts_of_layers = []
        for layer in range(rnn.num_layers):
            outputs = []
            starts_of_layer = []
            for direction in range(network.num_directions):
                start = state_before(network, layer, direction)
                states, starts = _forward(rnn, layer, direction, inputs[-1], start)
                outputs.append(states)
                starts_of_layer.append(starts)
            inputs.append(torch.cat(outputs, 1))
            starts_of_layers.append(starts_of_layer)

        grad_outputs, grad_embeddings = _gradients_at_head(network, inputs, label)
        inputs.pop()
        for layer in reversed(range(rnn.num_layers)):
            grad_inputs = torch.zeros_like(inputs[layer])
            grad_states = grad_outputs.chunk(network.num_directions, dim=1)
            for direction, grad in enumerate(grad_states):
                starts = starts_of_layers[layer][direction]
                grad_inputs += _backward(rnn, layer, direction, inputs[layer], starts, grad)
            grad_outputs = grad_inputs
    return embeddings, grad_outputs + grad_embeddings


def _gradients_at_head(
    network: RNNClassifier, inputs: list[Tensor], label: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of log p at the last layer's states, and at the embeddings beside them.

    `inputs`: what each layer gets, and last what the head does, (T, width) each; so are the
    gradients. They are zero but for what the head sees: embeddings only where the model has a skip.
    """
    states = inputs[-1].detach().requires_grad_()
    embeddings = inputs[0].detach().requires_grad_()
    one_sequence = torch.ones(len(states), dtype=torch.int64)
    with torch.enable_grad():
        directions = states.chunk(network.num_directions, dim=1)
        summary = summary_of(network, embeddings, directions, one_sequence)
        log_probability = network.head(summary)[0].log_softmax(0)[label]
    of_states, of_embeddings = torch.autograd.grad(
        log_probability, [states, embeddings], allow_unused=True, materialize_grads=True
    )
    return of_states, of_embeddings


def _forward(
    rnn: nn.RNNBase, layer: int, direction: int, inputs: Tensor, start: State
) -> tuple[Tensor, list[State]]:
    """Return the states of one direction (T, H), from (T, width), and that before each piece.

    `start` is the state before the first step, (1, H) each.
    """
    state = tuple(part.unsqueeze(0) for part in start)
    starts = []
    outputs = []
    for piece in torch.split(_in_order(inputs, direction), PIECE_STEPS):
        starts.append(state)
        states, state = outputs_of_direction(rnn, layer, direction, piece, state)
        outputs.append(states)
    return _in_order(torch.cat(outputs), direction), starts


def _backward(
    rnn: nn.RNNBase,
    layer: int,
    direction: int,
    inputs: Tensor,
    starts: list[State],
    grad_outputs: Tensor,
) -> Tensor:
    """Return the gradient with respect to `inputs` (T, width), given that of the states (T, H)."""
    pieces = torch.split(_in_order(inputs, direction), PIECE_STEPS)
    grad_pieces = torch.split(_in_order(grad_outputs, direction), PIECE_STEPS)

    # The gradient of the state that a piece hands to the next one; nothing comes after the last.
    grad_state = [torch.zeros_like(part) for part in starts[0]]
    found = []
    for piece, start, grad_piece in reversed(list(zip(pieces, starts, grad_pieces, strict=True))):
        piece = piece.detach().requires_grad_()
        start = tuple(part.detach().requires_grad_() for part in start)
        with torch.enable_grad():
            states, finals = outputs_of_direction(rnn, layer, direction, piece, start)
        grad_input, *grad_state = torch.autograd.grad(
            [states, *finals], [piece, *start], [grad_piece, *grad_state]
        )
        found.append(grad_input)
    return _in_order(torch.cat(found[::-1]), direction)


def _in_order(rows: Tensor, direction: int) -> Tensor:
    """Return rows (T, width) in the order in which a direction reads them, or back again."""
    return rows.flip(0) if direction == 1 else rows
