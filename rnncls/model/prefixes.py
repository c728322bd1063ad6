"""The loss over all prefixes of sequences: a label after every token, and not at the end alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.data.batches import ranks_of
from rnncls.model.cells import State
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import NO_KEYS, Keys
from rnncls.model.losses import sequence_losses
from rnncls.model.pieces import WHOLE, Pieces, Reached, Rows, read
from rnncls.model.pooling import Pooled, lengths_of


def prefix_weights(batch_sizes: Tensor) -> Tensor:
    """Return the weight of each packed row, (S,): 1 / length of its sequence.

    Weighted so, the losses of the prefixes of a sequence add up to their mean: a long sequence
    weighs as much as a short one.
    """
    return 1 / lengths_of(batch_sizes).float()[ranks_of(batch_sizes)]


def prefix_losses(
    network: RNNClassifier,
    tokens: PackedSequence,
    labels: Tensor,
    weights: Tensor,
    pieces: Pieces = WHOLE,
    keys: Keys = NO_KEYS,
    losses_of: Callable[[Tensor, Tensor], Tensor] = sequence_losses,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of the sum over all prefixes of weight * cross-entropy, in nats, as scalars.

    `labels` and `weights` (S,) are those of the prefix that ends at each token, in the order of
    `tokens.data`. Without truncation there is one part. With `pieces.truncate_after` there is one
    for so many time steps, through whose beginning no gradient flows; the gradient of a part is to
    be computed before the next one is asked for. Beside each loss come the logits (B, N) after the
    last token that was read of each sequence, without gradient, in the order of the sequences.
    `keys`: as of the network's `forward`. `losses_of`: what stands in the place of the
    cross-entropy, (S,), as a function of logits (S, N) and labels.
    """
    sizes = tokens.batch_sizes
    longest = len(sizes)
    part_length = pieces.truncate_after or longest
    ids, *more = network.rows_of(tokens, pieces.cut(longest), keys)
    rows = (ids, labels, weights, *more)

    def run(rows: Rows, batch_sizes: Tensor, state: State | None) -> tuple[Tensor, State]:
        ids, labels, weights, *more = rows
        outputs, final = network.run((ids, *more), batch_sizes, state, keys)
        logits = network.head(outputs).float()
        losses = losses_of(logits, labels) * weights
        return losses.unsqueeze(1), final

    state = network.start_state(tokens) or ()
    first_row = 0
    for first in range(0, longest, part_length):
        of_part = sizes[first : first + part_length]
        last_row = first_row + int(of_part.sum())
        start = Reached(state).first(int(of_part[0]))

        # What the sequences add up is what pooling calls their total.
        nothing = Pooled(total=weights.new_zeros(int(of_part[0]), 1))
        within = tuple(each[first_row:last_row] for each in rows)
        recompute = Pieces(recompute_every=pieces.recompute_every)
        reached = read(run, within, of_part, start._replace(pooled=nothing), recompute)

        state = Reached(reached.state).followed_by(Reached(state)).detach().state
        with torch.no_grad():
            logits = network.head(state[0][-1]).float()
            if tokens.unsorted_indices is not None:
                logits = logits.index_select(0, tokens.unsorted_indices)
        total = reached.pooled.total
        if total is not None:
            yield total.sum(), logits
        first_row = last_row
