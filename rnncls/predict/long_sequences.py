"""Which sequences are too long for a model: of two directions, or with positions.

In one direction, a model reads any sequence piece by piece, with the states of a few tokens in
memory. Positions are trained up to the longest sequence that the config allows.
"""

from rnncls.errors import Problem
from rnncls.model.classifier import RNNClassifier
from rnncls.model.inputs import beyond_positions

# What the states of a sequence may take that are in memory together.
MOST_STATE_BYTES = 3 * 2**27


def too_long_for(network: RNNClassifier, length: int) -> Problem | None:
    """Return the problem of a sequence of so many tokens, None if the model can read it.

    Behind the last position nothing is trained. Two directions need the states of a whole layer.
    That they are pooled takes no more: it happens behind the layer, whose own needs are larger.
    """
    if network.num_positions is not None and length > network.num_positions:
        return beyond_positions(length, network.num_positions)
    if network.num_directions == 1:
        return None
    rnn = network.rnn
    # Of each step: its embedding; its gates, the states of both directions, and those below.
    of_step = network.embedding.embedding_dim
    of_step += rnn.get_parameter("weight_hh_l0").shape[0] + 6 * rnn.hidden_size
    most = MOST_STATE_BYTES // (4 * of_step)
    if length <= most:
        return None
    return Problem(
        "a sequence too long for a model of two directions",
        expected=f"at most {most:,} tokens: shorter lines, or a run with data.max_length",
        found=f"{length:,} tokens",
        id="D13",
    )
