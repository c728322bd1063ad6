"""Runs a bidirectional model piece by piece: layer by layer, one direction after the other.

A layer reads what both directions of the layer below say about each token, so that the outputs of
the lower layers are kept; the states of the last layer are in memory for one piece at a time.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.model.cells import State
from rnncls.model.dropout import NO_KEYS, Keys, by_position, places_of_packed
from rnncls.model.layers import outputs_forward
from rnncls.model.noise import by_keys, noise_rows
from rnncls.model.pieces import Collected, Pieces, Reached, Rows, in_order, read, reversed_rows
from rnncls.model.pooling import Pooled


def read_both(
    inputs_of: Callable[[Rows], Tensor],
    rnn: nn.RNNBase,
    tokens: PackedSequence,
    rows: Rows,
    start: Reached,
    pieces: Pieces,
    dropout: float,
    keys: Keys = NO_KEYS,
    state_noise: float = 0.0,
) -> Reached:
    """Read all tokens of a batch in both directions; as `read` does it in one.

    `inputs_of` makes of the `rows` of tokens, all or some, what the first layer reads, (S, E).
    `start.state` is (num_layers * 2, B, H) each, not None. Truncated, each direction of each layer
    has a gradient for the last K tokens that it reads: in reverse those are the first ones. `keys`
    are those of `dropout_keys`; without them torch's generator draws. `state_noise`: sigma, which
    needs keys.
    """
    sizes = tokens.batch_sizes
    backwards = reversed_rows(sizes).to(tokens.data.device)
    orders: list[slice | Tensor] = [slice(None), backwards]

    data = rows[0]  # of layers above the first: what the layer below has put out
    places = (places_of_packed(tokens, keys),) if keys.of_layers and dropout > 0 else ()
    of_noise = noise_rows(tokens, keys, num_directions=2) if state_noise > 0 else ()
    finals: list[State] = []
    for layer in range(rnn.num_layers):
        is_last = layer == rnn.num_layers - 1
        # The rows of a piece know their places. The generator draws for the whole layer.
        if layer > 0:
            rows = (data, *places)
            if dropout > 0 and not places:
                rows = (F.dropout(data, dropout),)

        outputs = []
        pooled = []
        for direction, order in enumerate(orders):
            number = 2 * layer + direction
            before = Reached(
                tuple(part[number : number + 1] for part in start.state),
                _of_direction(start.pooled, direction, rnn.hidden_size) if is_last else Pooled(),
            )
            run = partial(
                _run_direction, inputs_of, rnn, layer, direction, dropout, keys, state_noise
            )
            ordered = tuple(each[order] for each in (*of_noise, *rows))
            collected: list[Collected] | None = None if is_last else []
            reached = read(run, ordered, sizes, before, pieces, collected, reverse=direction == 1)

            finals.append(reached.state)
            pooled.append(reached.pooled)
            if collected:
                outputs.append(in_order(collected)[order])
        if not is_last:
            data = torch.cat(outputs, 1)

    state = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
    return Reached(state, _joined(*pooled))


def _run_direction(
    inputs_of: Callable[[Rows], Tensor],
    rnn: nn.RNNBase,
    layer: int,
    direction: int,
    dropout: float,
    keys: Keys,
    state_noise: float,
    rows: Rows,
    batch_sizes: Tensor,
    state: State | None,
) -> tuple[Tensor, State]:
    """Run one direction of one layer over rows of tokens or, above the first layer, inputs (S, W).

    Beside the inputs stand their places, where dropout by position acts on them. Before them stands
    what the noise on states needs, if there is some.
    """
    noise = None
    if state_noise > 0:
        noise = by_keys(keys.of_states, state_noise, *rows[:2])(layer, direction)
        rows = rows[2:]
    data, *places = rows
    if layer == 0:
        data = inputs_of(rows)
    elif places:
        data = by_position(keys, places[0], dropout)(layer, data)
    return outputs_forward(rnn, layer, direction, data, batch_sizes, state, noise)


def _of_direction(pooled: Pooled, direction: int, size: int) -> Pooled:
    """Return what was seen of the outputs of one direction, (B, H) each."""
    columns = slice(direction * size, (direction + 1) * size)
    return Pooled(*(None if part is None else part[:, columns] for part in pooled))


def _joined(forward: Pooled, reverse: Pooled) -> Pooled:
    """Return what was seen of both directions, (B, 2 * H) each."""
    parts: list[Tensor | None] = []
    for one, other in zip(forward, reverse, strict=True):
        if one is None or other is None:
            parts.append(None)
        else:
            parts.append(torch.cat([one, other], 1))
    return Pooled(*parts)
