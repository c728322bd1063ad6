"""The classifier: an embedding, then nn.RNN, nn.LSTM or nn.GRU, then a linear head."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnncls.data import Padded
from rnncls.model.both_directions import read_both
from rnncls.model.cells import State, zero_state
from rnncls.model.dropout import (
    NO_KEYS,
    Drop,
    Keys,
    by_generator,
    by_masks,
    by_position,
    draw_masks,
    places_of_packed,
    places_of_padded,
)
from rnncls.model.gated import PackedGRU, PackedLSTM
from rnncls.model.layers import ignore_compaction, outputs_of_layers
from rnncls.model.pieces import WHOLE, Pieces, Reached, Rows, read
from rnncls.model.pooling import (
    Pooling,
    nothing_pooled,
    parts_of,
    pooled_with,
    summary_of_padded,
    summary_of_pooled,
)
from rnncls.model.recurrence import PackedRNN

_MODULES: dict[str, Any] = {"rnn": PackedRNN, "lstm": PackedLSTM, "gru": PackedGRU}


class RNNClassifier(nn.Module):
    """Many-to-one classification of packed sequences of token ids.

    For cell rnn, h_t = f(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh) with f = tanh or relu; lstm and gru
    are torch.nn's. The logits are a linear function of what `pooling` makes of the last layer's h:
    its value at each sequence's own last token (and, when bidirectional, in reverse at its first),
    its mean or its largest value over the sequence, or all three. h_0 and c_0 are zeros, or the
    parameter `initial_state`. Padding is never embedded and never seen by the recurrence.
    """

    def __init__(
        self,
        num_embeddings: int,
        num_classes: int,
        embedding_dim: int = 10,
        hidden_size: int = 128,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "relu",
        bias: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        cell: Literal["rnn", "lstm", "gru"] = "rnn",
        pooling: Pooling = "last",
        initial_state: Literal["zeros", "learned"] = "zeros",
    ) -> None:
        super().__init__()
        # Their names, and that of `initial_state`, are those of the tensors in a checkpoint.
        self.embedding = _embedding(num_embeddings, embedding_dim)

        options: dict[str, Any] = {
            "num_layers": num_layers,
            "bias": bias,
            "bidirectional": bidirectional,
        }
        # The gated cells get no dropout of torch's, and their nonlinearities are fixed.
        if cell == "rnn":
            options |= {"nonlinearity": nonlinearity, "dropout": dropout}
        self.rnn: nn.RNNBase = _MODULES[cell](embedding_dim, hidden_size, **options)

        # Between layers; see outputs_of_layers.
        self.dropout = dropout
        # With dropout layers run one at a time, and in pieces directions, too.
        if dropout > 0 or bidirectional:
            ignore_compaction()
        self.num_directions = 2 if bidirectional else 1
        self.pooling: Pooling = pooling
        self.head = nn.Linear(self.summary_size, num_classes)

        # h_0 and, for the LSTM, c_0 of each layer and direction, (1 or 2, num_layers * D, H).
        self.initial_state: nn.Parameter | None = None
        if initial_state == "learned":
            parts = 2 if cell == "lstm" else 1
            zeros = torch.zeros(parts, self._num_states, hidden_size)
            self.initial_state = nn.Parameter(zeros)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.weight.device

    @property
    def _num_states(self) -> int:
        return self.rnn.num_layers * self.num_directions

    @property
    def summary_size(self) -> int:
        """How many numbers the head sees of a sequence."""
        width = self.num_directions * self.rnn.hidden_size
        return width * len(parts_of(self.pooling))

    def forward(
        self,
        tokens: PackedSequence | Padded,
        state: State | None = None,
        pieces: Pieces = WHOLE,
        keys: Keys = NO_KEYS,
    ) -> Tensor:
        """Return the logits, (B, num_classes), in the order in which the sequences were given.

        Padded sequences give the same logits as packed ones. In one direction, padding comes after
        the last token, whose state is taken, so that padding has no influence and no gradient.

        Ids are packed by torch.nn.utils.rnn.pack_sequence, or by `rnncls.data.collate(...).tokens`:

        >>> from torch.nn.utils.rnn import pack_sequence
        >>> model = RNNClassifier(num_embeddings=10, num_classes=2)
        >>> ids = [torch.tensor([3, 1, 4]), torch.tensor([5])]
        >>> model(pack_sequence(ids, enforce_sorted=False)).shape
        torch.Size([2, 2])

        `state`: what `final_state` returned for the tokens before these, if there were some.
        `pieces`: how packed sequences are run for gradients that need little memory. `keys`: those
        of `dropout_keys`, for dropout as a function of them and of positions; without them dropout
        is that of torch's generator.

        Raises: TypeError for anything that is neither packed ids nor `Padded`. ValueError if the
        model is bidirectional and the sequences are padded, for a state of a model that needs the
        whole sequence, or for one of other sequences.
        """
        if state is not None:
            self._require_pieces("a state")

        if isinstance(tokens, Padded):
            summary = self._summary_of_padded(tokens, state, keys)
        else:
            _require_packed_ids(tokens)
            summary = self._summary(tokens, state, pieces, keys)
        logits: Tensor = self.head(summary)
        return logits

    def final_state(self, tokens: PackedSequence, state: State | None = None) -> State:
        """Return the state after each sequence's last token, from which others can go on.

        (h,) or, of the LSTM, (h, c): (num_layers, B, hidden_size) each, in the order in which the
        sequences were given. `state`: as for `forward`.

        >>> from torch.nn.utils.rnn import pack_sequence
        >>> model = RNNClassifier(num_embeddings=10, num_classes=2)
        >>> state = model.final_state(pack_sequence([torch.tensor([3, 1])]))
        >>> logits = model(pack_sequence([torch.tensor([4])]), state)

        Raises: TypeError for anything but packed ids. ValueError for two directions, or another
        pooling than last: such models need the whole sequence. ValueError for a state of others.
        """
        self._require_pieces("a state")
        _require_packed_ids(tokens)
        start = Reached(self.start_state(tokens, state) or ())
        final = read(self.run, (tokens.data,), tokens.batch_sizes, start).state
        if tokens.unsorted_indices is None:
            return final
        return tuple(part.index_select(1, tokens.unsorted_indices) for part in final)

    def prefix_logits(self, tokens: PackedSequence, state: State | None = None) -> Tensor:
        """Return the logits after each token, (S, num_classes), in the order of `tokens.data`.

        They are those of the prefix that ends at the token. `state`: as for `forward`.

        Raises: TypeError for anything but packed ids. ValueError for two directions, another
        pooling than last, or a state of other sequences.
        """
        self._require_pieces("prefixes")
        _require_packed_ids(tokens)
        start = self.start_state(tokens, state)
        outputs, _ = self.run((tokens.data,), tokens.batch_sizes, start)
        logits: Tensor = self.head(outputs)
        return logits

    def _require_pieces(self, what: str) -> None:
        """Raise ValueError if the answer is not a function of the state after the last token."""
        if self.num_directions == 2:
            raise ValueError(f"{what} needs a model of one direction: this one is bidirectional")
        if self.pooling != "last":
            raise ValueError(f'{what} needs pooling "last": this model has "{self.pooling}"')

    def start_state(self, tokens: PackedSequence, state: State | None = None) -> State | None:
        """Return the state before the first token, longest sequence first; None for zeros.

        Raises: ValueError for a state of other sequences.
        """
        num_sequences = int(tokens.batch_sizes[0])
        if state is None:
            return self._initial_state(num_sequences)
        self._require_state(state, num_sequences)
        if tokens.sorted_indices is None:
            return state
        return tuple(part.index_select(1, tokens.sorted_indices) for part in state)

    def _require_state(self, state: State, num_sequences: int) -> None:
        """Raise ValueError unless a state is one of these sequences.

        torch.lstm, and a batch that is run in pieces, would take those of the first ones.
        """
        shape = (self._num_states, num_sequences, self.rnn.hidden_size)
        count = 2 if self.rnn.mode == "LSTM" else 1
        found = type(state).__name__
        if isinstance(state, tuple | list):
            shapes = [tuple(part.shape) for part in state]
            if shapes == [shape] * count:
                return
            found += f" of {', '.join(map(str, shapes))}"
        raise ValueError(
            "the state must be what final_state returned for the same sequences: a tuple of "
            f"{', '.join([str(shape)] * count)}, not a {found}"
        )

    def _initial_state(self, num_sequences: int) -> State | None:
        """Return h_0 and c_0 of B sequences, (num_layers * D, B, H) each; None for zeros."""
        if self.initial_state is None:
            return None
        # (parts, num_layers * D, B, H)
        parts = self.initial_state.unsqueeze(2).expand(-1, -1, num_sequences, -1)
        return tuple(part.contiguous() for part in parts)

    def _summary_of_padded(self, padded: Padded, state: State | None, keys: Keys) -> Tensor:
        """Return what the head sees of padded sequences, (B, summary_size)."""
        if self.num_directions == 2:
            raise ValueError("padded sequences cannot be run in reverse: padding would come first")

        embedded = self.embedding(padded.tokens.t())  # (T, B, embedding_dim)
        if state is None:
            state = self._initial_state(len(padded.lengths))
        else:
            self._require_state(state, len(padded.lengths))

        more = []
        if keys.of_layers:
            more.append(places_of_padded(padded.tokens, keys))
        outputs, _ = self._outputs(embedded, None, state, self._drop(more, keys))
        return summary_of_padded(self.pooling, outputs, padded.lengths)

    def _summary(
        self, tokens: PackedSequence, state: State | None, pieces: Pieces, keys: Keys
    ) -> Tensor:
        """Return what the head sees of packed sequences, (B, summary_size)."""
        sizes = tokens.batch_sizes
        start = self.start_state(tokens, state) or ()
        nothing = nothing_pooled(self.pooling, int(sizes[0]), self.rnn, self.head.weight)

        is_cut = torch.is_grad_enabled() and pieces.cut(len(sizes))
        if is_cut and not start:
            start = zero_state(self.rnn, self.head.weight, self._num_states, int(sizes[0]))

        run = partial(self.run, keys=keys)
        if self.num_directions == 1:
            rows = self.rows_of(tokens, is_cut, keys)
            reached = read(run, rows, sizes, Reached(start, nothing), pieces)
        elif is_cut:
            dropout = self.dropout if self.training else 0.0
            reached = read_both(
                self.embedding, self.rnn, tokens, Reached(start, nothing), pieces, dropout, keys
            )
        else:
            # The reverse direction begins at the end, so that no state can go before it is done.
            outputs, final = run(self.rows_of(tokens, is_cut, keys), sizes, start or None)
            reached = Reached(final, pooled_with(nothing, outputs, sizes))

        # Of (num_layers * D, B, H) the last D are the last layer's.
        hidden = reached.state[0][-self.num_directions :]
        last = hidden[0] if self.num_directions == 1 else hidden.transpose(0, 1).flatten(1)
        summary = summary_of_pooled(self.pooling, reached.pooled, last, sizes)

        # Without indices, the sequences were given longest first.
        if tokens.unsorted_indices is None:
            return summary
        return summary.index_select(0, tokens.unsorted_indices)

    def rows_of(self, tokens: PackedSequence, is_cut: bool, keys: Keys) -> Rows:
        """Return what `run` reads: ids (S,), and what says which inputs of the layers stay.

        `is_cut`: whether they are read in pieces, whose dropout is to be that of the whole.
        """
        if not self._drops:
            return (tokens.data,)
        if keys.of_layers:
            return tokens.data, places_of_packed(tokens, keys)
        if not is_cut:
            return (tokens.data,)
        shape = (len(tokens.data), self.rnn.hidden_size)
        count = self.rnn.num_layers - 1
        return tokens.data, *draw_masks(self.head.weight, shape, self.dropout, count)

    def run(
        self, rows: Rows, batch_sizes: Tensor, state: State | None, keys: Keys = NO_KEYS
    ) -> tuple[Tensor, State]:
        """Run rows of `rows_of`, all or some: with its keys, a `Run` as read wants it."""
        ids, *more = rows
        return self._outputs(self.embedding(ids), batch_sizes, state, self._drop(more, keys))

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout > 0

    def _drop(self, more: Sequence[Tensor], keys: Keys) -> Drop | None:
        """Return how dropout acts, or None; `more` is what `rows_of` returns beside the ids."""
        if not self._drops:
            return None
        if keys.of_layers:
            return by_position(keys, more[0], self.dropout)
        return by_masks(more, self.dropout) if more else by_generator(self.dropout)

    def _outputs(
        self, data: Tensor, batch_sizes: Tensor | None, state: State | None, drop: Drop | None
    ) -> tuple[Tensor, State]:
        """Run all layers over embedded tokens; all as in `outputs_of_layers`."""
        if drop is not None:
            return outputs_of_layers(self.rnn, data, batch_sizes, state, drop)

        # torch.nn wants h_0 alone, but of the LSTM (h_0, c_0).
        start: Any = state
        if state is not None and len(state) == 1:
            (start,) = state
        if batch_sizes is None:
            outputs, final = self.rnn(data, start)
        else:
            packed, final = self.rnn(PackedSequence(data, batch_sizes), start)
            outputs = packed.data
        return outputs, final if isinstance(final, tuple) else (final,)


def _embedding(num_embeddings: int, embedding_dim: int) -> nn.Embedding:
    """Return nn.Embedding(num_embeddings, embedding_dim), which may be on the meta device."""
    # There the module's own random numbers would import torch._dynamo, which takes as long as torch
    # itself. On a real device they are the first weights, and must stay what they are.
    if torch.empty(0).is_meta:
        weight = torch.empty(num_embeddings, embedding_dim)
        return nn.Embedding(num_embeddings, embedding_dim, _weight=weight)
    return nn.Embedding(num_embeddings, embedding_dim)


def _require_packed_ids(tokens: object) -> None:
    """Raise TypeError, which says what to use, for anything but a PackedSequence of ids."""
    found = type(tokens).__name__
    if isinstance(tokens, PackedSequence):
        ids = tokens.data
        if ids.dtype in (torch.int64, torch.int32) and ids.ndim == 1:
            return
        kind = str(ids.dtype).removeprefix("torch.")
        found = f"a {found} of {kind} with data of shape {tuple(ids.shape)}"

    raise TypeError(
        f"the model takes a PackedSequence of token ids, not {found}: use "
        "rnncls.load(...).predict, or pack the ids with torch.nn.utils.rnn.pack_sequence("
        "ids, enforce_sorted=False) or rnncls.data.collate(ids, labels).tokens"
    )
