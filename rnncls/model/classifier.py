"""The classifier: embeddings, then nn.RNN, nn.LSTM, nn.GRU or nothing, then a linear head."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

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
from rnncls.model.inputs import NO_DROPOUT, InputDropout, InputLayer
from rnncls.model.layers import ignore_compaction, outputs_of_layers
from rnncls.model.noise import NoiseOf, by_keys, noise_rows
from rnncls.model.none import NoRecurrence
from rnncls.model.pieces import WHOLE, Pieces, Reached, Rows, is_streamed, read
from rnncls.model.pooling import (
    Pooled,
    Pooling,
    nothing_pooled,
    parts_of,
    pooled_with,
    side_by_side,
    summary_of_padded,
    summary_of_pooled,
)
from rnncls.model.recurrence import PackedRNN

_MODULES: dict[str, Any] = {"rnn": PackedRNN, "lstm": PackedLSTM, "gru": PackedGRU}


class RNNClassifier(InputLayer):
    """Many-to-one classification of packed sequences of token ids.

    For cell rnn, h_t = f(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh) with f = tanh or relu; lstm and gru
    are torch.nn's. x_t is what `InputLayer` makes of token t. The logits are a linear function of
    what `pooling` makes of the last layer's h: its value at each sequence's own last token (and,
    when bidirectional, in reverse at its first), its mean or its largest value over the sequence,
    or all three. With `skip`, the mean of the x_t stands beside it; for cell none, that mean is all
    there is. h_0 and c_0 are zeros, or the parameter `initial_state`. Padding is never embedded and
    never seen by the recurrence.
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
        cell: Literal["rnn", "lstm", "gru", "none"] = "rnn",
        pooling: Pooling = "last",
        initial_state: Literal["zeros", "learned"] = "zeros",
        ngrams: Sequence[int] = (),
        ngram_table: int = 65536,
        num_positions: int = 0,
        skip: bool = False,
        input_dropout: InputDropout = NO_DROPOUT,
        has_unknown: bool = False,
        state_noise: float = 0.0,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            ngrams,
            ngram_table,
            num_positions,
            input_dropout,
            has_unknown,
        )
        # Without recurrent layers, the mean of what they would read is all that there is.
        if cell == "none":
            pooling = "mean"
            skip = False
            bidirectional = False
            initial_state = "zeros"
            dropout = 0.0
            state_noise = 0.0

        # The names of modules and parameters are those of the tensors in a checkpoint.
        options: dict[str, Any] = {
            "num_layers": num_layers,
            "bias": bias,
            "bidirectional": bidirectional,
        }
        # The gated cells get no dropout of torch's, and their nonlinearities are fixed.
        if cell == "rnn":
            options |= {"nonlinearity": nonlinearity, "dropout": dropout}
        self.rnn: nn.RNNBase
        if cell == "none":
            self.rnn = cast(nn.RNNBase, NoRecurrence(embedding_dim))
        else:
            self.rnn = _MODULES[cell](embedding_dim, hidden_size, **options)

        # Between layers; see outputs_of_layers.
        self.dropout = dropout
        # On what W_hh multiplies; see noise.py.
        self.state_noise = state_noise
        # With dropout layers run one at a time, and in pieces directions, too.
        if dropout > 0 or bidirectional:
            ignore_compaction()
        self.num_directions = 2 if bidirectional else 1
        self.pooling: Pooling = pooling
        self.skip = skip
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
        of_skip = self.embedding.embedding_dim if self.skip else 0
        return width * len(parts_of(self.pooling)) + of_skip

    @property
    def is_recurrent(self) -> bool:
        """Whether there are recurrent layers, and so states."""
        return self.rnn.num_layers > 0

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
        is that of torch's generator. Noise on states needs those of `noise_keys`; without them
        there is none.

        Raises: TypeError for anything that is neither packed ids nor `Padded`. ValueError if the
        model is bidirectional or has noise and the sequences are padded, for a state of a model
        that needs the whole sequence, for one of other sequences, or for a sequence beyond the last
        position.
        """
        if state is not None:
            self._require_pieces("a state")
        keys = self.with_input_keys(keys)

        if isinstance(tokens, Padded):
            summary = self._summary_of_padded(tokens, state, keys)
        else:
            _require_packed_ids(tokens)
            summary = self._summary(tokens, state, pieces, keys)
        logits: Tensor = self.head(self.drop_summary(summary, keys))
        return logits

    def final_state(self, tokens: PackedSequence, state: State | None = None) -> State:
        """Return the state after each sequence's last token, from which others can go on.

        (h,) or, of the LSTM, (h, c): (num_layers, B, hidden_size) each, in the order in which the
        sequences were given. `state`: as for `forward`.

        >>> from torch.nn.utils.rnn import pack_sequence
        >>> model = RNNClassifier(num_embeddings=10, num_classes=2)
        >>> state = model.final_state(pack_sequence([torch.tensor([3, 1])]))
        >>> logits = model(pack_sequence([torch.tensor([4])]), state)

        Raises: TypeError for anything but packed ids. ValueError for two directions, another
        pooling than last, n-grams and the like: such models need the whole sequence. ValueError for
        a state of others.
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
        pooling than last, a skip, or a state of other sequences.
        """
        self._require_pieces("prefixes", is_whole=state is None)
        _require_packed_ids(tokens)
        start = self.start_state(tokens, state)
        rows = self.token_rows(tokens, NO_KEYS)
        outputs, _ = self.run(rows, tokens.batch_sizes, start)
        logits: Tensor = self.head(outputs)
        return logits

    def _require_pieces(self, what: str, is_whole: bool = False) -> None:
        """Raise ValueError if the answer is not a function of the state after the last token.

        `is_whole`: whether all the tokens before are known.
        """
        if not self.is_recurrent:
            raise ValueError(f"{what} needs recurrent layers: this model has none")
        if self.skip:
            raise ValueError(f"{what} needs a model without skip")
        if self.needs_whole and not is_whole:
            raise ValueError(f"{what} needs a model without n-grams and positions")
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
        if self._sigma(keys) > 0:
            raise ValueError("noise on states needs packed sequences")

        embedded = self.embed_padded(padded.tokens, keys)  # (T, B, embedding_dim)
        if state is None:
            state = self._initial_state(len(padded.lengths))
        else:
            self._require_state(state, len(padded.lengths))

        more = []
        if keys.of_layers:
            more.append(places_of_padded(padded.tokens, keys))
        outputs, _ = self._outputs(embedded, None, state, self._drop(more, keys))
        summary = summary_of_padded(self.pooling, outputs, padded.lengths)
        if not self.skip:
            return summary
        return side_by_side([summary, summary_of_padded("mean", embedded, padded.lengths)])

    def _summary(
        self, tokens: PackedSequence, state: State | None, pieces: Pieces, keys: Keys
    ) -> Tensor:
        """Return what the head sees of packed sequences, (B, summary_size)."""
        if not self.is_recurrent:
            pieces = WHOLE
        sizes = tokens.batch_sizes
        start = self.start_state(tokens, state) or ()
        nothing = nothing_pooled(self.pooling, int(sizes[0]), self.rnn, self.head.weight)

        is_cut = torch.is_grad_enabled() and pieces.cut(len(sizes))
        if is_cut and not start:
            start = zero_state(self.rnn, self.head.weight, self._num_states, int(sizes[0]))

        run = partial(self.run, keys=keys)
        rows = self.token_rows(tokens, keys)
        if self.skip and not is_streamed(rows):
            # Once for both that read it.
            rows = (self.embed(rows, keys),)

        if self.num_directions == 1:
            of_layers = self._rows_of_layers(tokens, is_cut, keys)
            reached = read(run, (*rows, *of_layers), sizes, Reached(start, nothing), pieces)
        elif is_cut:
            dropout = self.dropout if self.training else 0.0
            inputs = partial(self._inputs_of, keys=keys)
            before = Reached(start, nothing)
            reached = read_both(
                inputs, self.rnn, tokens, rows, before, pieces, dropout, keys, self._sigma(keys)
            )
        else:
            # The reverse direction begins at the end, so that no state can go before it is done.
            of_layers = self._rows_of_layers(tokens, is_cut, keys)
            outputs, final = run((*rows, *of_layers), sizes, start or None)
            reached = Reached(final, pooled_with(nothing, outputs, sizes))

        last = self._last(reached.state)
        summary = summary_of_pooled(self.pooling, reached.pooled, last, sizes)
        if self.skip:
            summary = side_by_side([summary, self._means(rows, sizes, keys)])

        # Without indices, the sequences were given longest first.
        if tokens.unsorted_indices is None:
            return summary
        return summary.index_select(0, tokens.unsorted_indices)

    def _last(self, state: State) -> Tensor | None:
        """Return the last layer's states, (B, D * H); None without recurrent layers."""
        if not self.is_recurrent:
            return None
        # Of (num_layers * D, B, H) the last D are the last layer's.
        hidden = state[0][-self.num_directions :]
        return hidden[0] if self.num_directions == 1 else hidden.transpose(0, 1).flatten(1)

    def _means(self, rows: Rows, sizes: Tensor, keys: Keys) -> Tensor:
        """Return the mean of what the first layer reads of each sequence, (B, embedding_dim)."""
        zeros = self.head.weight.new_zeros(int(sizes[0]), self.embedding.embedding_dim)
        reached = read(
            lambda rows, *_: (self._inputs_of(rows, keys), ()),
            rows,
            sizes,
            Reached((), Pooled(zeros)),
        )
        return summary_of_pooled("mean", reached.pooled, None, sizes)

    def rows_of(self, tokens: PackedSequence, is_cut: bool, keys: Keys) -> Rows:
        """Return what `run` reads: rows of tokens, and what noise and dropout need of them.

        `is_cut`: whether they are read in pieces, whose dropout is to be that of the whole.
        """
        return *self.token_rows(tokens, keys), *self._rows_of_layers(tokens, is_cut, keys)

    def _rows_of_layers(self, tokens: PackedSequence, is_cut: bool, keys: Keys) -> Rows:
        """Return what noise needs and what says which inputs of the layers above the first stay.

        These are tensors of S rows each.
        """
        of_noise: Rows = ()
        if self._sigma(keys) > 0:
            of_noise = noise_rows(tokens, keys, self.num_directions)
        return *of_noise, *self._rows_of_dropout(tokens, is_cut, keys)

    def _rows_of_dropout(self, tokens: PackedSequence, is_cut: bool, keys: Keys) -> Rows:
        if not self._drops_layers:
            return ()
        if keys.of_layers:
            return (places_of_packed(tokens, keys),)
        if not is_cut:
            return ()
        shape = (len(tokens.data), self.rnn.hidden_size)
        count = self.rnn.num_layers - 1
        return tuple(draw_masks(self.head.weight, shape, self.dropout, count))

    def run(
        self, rows: Rows, batch_sizes: Tensor, state: State | None, keys: Keys = NO_KEYS
    ) -> tuple[Tensor, State]:
        """Run rows of `rows_of`, all or some: with its keys, a `Run` as read wants it.

        In the place of the rows of tokens may stand what the first layer reads of them.
        """
        count = 1 if rows[0].is_floating_point() else self.num_token_rows(keys)
        inputs = self._inputs_of(rows[:count], keys)
        more = rows[count:]
        noise = None
        sigma = self._sigma(keys)
        if sigma > 0:
            noise = by_keys(keys.of_states, sigma, *more[:2])
            more = more[2:]
        return self._outputs(inputs, batch_sizes, state, self._drop(more, keys), noise)

    def _inputs_of(self, rows: Rows, keys: Keys) -> Tensor:
        """Return what the first layer reads of rows of tokens, (S, embedding_dim)."""
        return rows[0] if rows[0].is_floating_point() else self.embed(rows, keys)

    def _sigma(self, keys: Keys) -> float:
        """Return how large the noise on states is: 0 where there is none."""
        return self.state_noise if self.training and keys.of_states else 0.0

    @property
    def _drops_layers(self) -> bool:
        return self.training and self.dropout > 0

    def _drop(self, more: Sequence[Tensor], keys: Keys) -> Drop | None:
        """Return how dropout acts, or None; `more` is what `_rows_of_dropout` returns."""
        if not self._drops_layers:
            return None
        if keys.of_layers:
            return by_position(keys, more[0], self.dropout)
        return by_masks(more, self.dropout) if more else by_generator(self.dropout)

    def _outputs(
        self,
        data: Tensor,
        batch_sizes: Tensor | None,
        state: State | None,
        drop: Drop | None,
        noise: NoiseOf | None = None,
    ) -> tuple[Tensor, State]:
        """Run all layers over what the first one reads; all as in `outputs_of_layers`."""
        if not self.is_recurrent:
            return data, ()
        if drop is not None or noise is not None:
            return outputs_of_layers(self.rnn, data, batch_sizes, state, drop, noise)

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
