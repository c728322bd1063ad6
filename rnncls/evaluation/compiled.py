"""Runs a model's forward pass as the compiled program of `rnncls.compiled.inference`."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.compiled import batches, gates, inference, kernels, streaming
from rnncls.compiled.batches import Array, BatchLayout, BatchSize, make_layout
from rnncls.compiled.inference import (
    BLOCK,
    GRU,
    LSTM,
    RELU,
    TANH,
    Given,
    Network,
    Weights,
    make_weights,
    make_work,
)
from rnncls.compiled.loading import load
from rnncls.evaluation.ways import LONGEST
from rnncls.model.classifier import RNNClassifier
from rnncls.model.pooling import parts_of

_CELLS = {"RNN_TANH": TANH, "RNN_RELU": RELU, "GRU": GRU, "LSTM": LSTM}

# Above this, in numbers, what the first layer makes of each token of the vocabulary is no table:
# it would not stay in the cache. 16 MiB.
MOST_IN_TABLE = 2**22


class CompiledModel:
    """A model on the CPU as it is now: its weights may not change meanwhile.

    The logits of a sequence have the same bits, whatever sequences are beside it and with any
    number of threads. They are those of the model within rounding. What n-grams and positions add
    to the embeddings is computed by torch, number by number, which rounds the same everywhere.
    """

    def __init__(self, model: RNNClassifier) -> None:
        self.model = model
        self.functions = load_program()
        self.network = network_of(model)
        self.weights = weights_of(model, self.network)
        self.threads = torch.get_num_threads()
        self.works = [make_work(self.network) for _ in range(self.threads)]

        # The outputs of two layers of two directions; it grows with the batches.
        self.kept = np.empty((2, 0, 2 * self.network.hidden), np.float32)

    def of_packed(self, tokens: PackedSequence) -> Tensor:
        """Return the logits (B, C) of packed ids, in the order in which they were given."""
        if len(tokens.batch_sizes) > LONGEST:
            logits: Tensor = self.model(tokens)
            return logits

        running = tokens.batch_sizes.numpy()
        nothing = np.zeros(0, np.int64)
        layout = BatchLayout(
            running=running,
            first_row=np.cumsum(running) - running,
            order=nothing,
            last_row=nothing,
            tokens=tokens.data.int().numpy(),
            next_rank=nothing,
        )
        by_rank = self._of_layout(layout)
        if tokens.unsorted_indices is None:
            return by_rank
        return by_rank.index_select(0, tokens.unsorted_indices)

    def of_ids(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Return the logits (B, C) of B lists of 1 to LONGEST ids."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        ends = np.cumsum(lengths)
        size = BatchSize(len(ids), int(lengths.max()), int(ends[-1]))
        tokens = np.fromiter(chain.from_iterable(ids), np.int32, size.rows)
        given = Given(tokens, ends - lengths, lengths, np.array([0, len(ids)]))
        layout = make_layout(size)
        self.functions.pack(given, 0, 0, 1, layout)

        ranks = np.empty(len(ids), np.int64)
        ranks[layout.order] = np.arange(len(ids))
        return self._of_layout(layout).index_select(0, torch.from_numpy(ranks))

    def _of_layout(self, layout: BatchLayout) -> Tensor:
        """Return the logits (B, C) of a batch, the longest sequence first."""
        network = self.network
        weights = self.weights
        if self.model.needs_whole:
            weights, layout = self._with_embedded(layout)
        sequences = int(layout.running[0])
        out = torch.empty(sequences, weights.head_t.shape[1])
        rows = len(layout.tokens)
        if network.directions == 2 and network.layers > 1 and rows > self.kept.shape[1]:
            self.kept = np.empty((2, rows, 2 * network.hidden), np.float32)

        # Every thread takes blocks of its own. What it computes does not depend on which.
        threads = min(self.threads, -(-sequences // BLOCK))
        arguments = (self.network, weights, layout)
        if threads == 1:
            self.functions.logits(*arguments, 0, 1, self.kept, self.works[0], out.numpy())
        else:
            with ThreadPoolExecutor(threads) as pool:
                futures = []
                for first, work in enumerate(self.works[:threads]):
                    rest = (first, threads, self.kept, work, out.numpy())
                    futures.append(pool.submit(self.functions.logits, *arguments, *rest))
            for future in futures:
                future.result()
        return out[:, : network.classes]

    @torch.no_grad()
    def _with_embedded(self, layout: BatchLayout) -> tuple[Weights, BatchLayout]:
        """Return weights with an embedding for each row of the batch, and the batch of those.

        Raises: ValueError for a sequence beyond the last position.
        """
        ids = torch.from_numpy(layout.tokens)
        packed = PackedSequence(ids, torch.from_numpy(layout.running))
        embedded = self.model.embedded(packed).numpy()
        rows = np.arange(len(layout.tokens), dtype=np.int32)
        return self.weights._replace(embedding=embedded), layout._replace(tokens=rows)


class CompiledStream:
    """A model on the CPU that reads up to BLOCK sequences a few tokens at a time.

    It has one direction and pooling last, and no skip, n-grams or positions. What it says
    has the same bits whatever sequences are beside it, and however their tokens are cut.
    """

    def __init__(self, model: RNNClassifier) -> None:
        self.functions = load_stream_program()
        self.network = network_of(model)
        self.weights = weights_of(model, self.network)
        self.work = make_work(self.network)
        self.logits = np.empty((BLOCK, len(self.weights.head_bias)), np.float32)
        self.kept = np.empty((2, 0, 2 * self.network.hidden), np.float32)

    def begin(self, count: int) -> None:
        """Put `count` sequences before their first token, at most BLOCK."""
        if count > BLOCK:
            raise ValueError(f"at most {BLOCK} sequences are read together, not {count}")
        self.functions.begin(self.network, self.weights, self.work)

    def classes(self, tokens: Tensor) -> Tensor:
        """Read tokens (T, R); return the class after each, (T, R), or NO_CLASS."""
        nothing = np.zeros(0, np.int64)
        given = np.ascontiguousarray(tokens.numpy(), np.int32).reshape(-1)
        layout = BatchLayout(nothing, nothing, nothing, nothing, given, nothing)
        out = np.empty(tuple(tokens.shape), np.int64)
        rest = (layout, self.kept, self.work, self.logits, out)
        self.functions.classes(self.network, self.weights, *rest)
        return torch.from_numpy(out)

    def keep(self, rows: Tensor) -> None:
        """Go on with the sequences that have these numbers, in this order."""
        count = len(rows)
        chosen = rows.numpy()
        hidden = self.work.hidden
        cell = self.work.cell.reshape(hidden.shape)
        for states in (hidden, cell):
            states[:, :count] = states[:, chosen]


def network_of(model: RNNClassifier) -> Network:
    """Return the sizes and functions of a model."""
    rnn = model.rnn
    parts = parts_of(model.pooling)
    num_tokens = model.embedding.num_embeddings
    cell = _CELLS[rnn.mode]
    network = Network(
        cell=cell,
        width=rnn.input_size,
        hidden=rnn.hidden_size,
        layers=rnn.num_layers,
        directions=model.num_directions,
        classes=model.head.out_features,
        last="last" in parts,
        mean="mean" in parts,
        largest="max" in parts,
        skip=model.skip,
        by_table=False,
    )
    # A table is of tokens alone, and the head does not see into it.
    if model.needs_whole or model.skip:
        return network
    columns = network.directions * network.products * kernels.padded(network.hidden)
    return network._replace(by_table=num_tokens * columns <= MOST_IN_TABLE)


@torch.no_grad()
def weights_of(model: RNNClassifier, network: Network) -> Weights:
    """Return a model's parameters as the compiled program reads them: copies but for embeddings."""
    embedding = np.ascontiguousarray(model.embedding.weight.numpy())
    weights = make_weights(network, embedding)
    hidden = network.hidden
    directions = network.directions

    for number in range(network.layers * directions):
        layer, direction = divmod(number, directions)
        suffix = f"l{layer}" + ("_reverse" if direction else "")
        if layer == 0:
            input_t = weights.input_t[direction]
        else:
            input_t = weights.between_t[number - directions]
        input_t[..., :hidden] = _gates(model, f"weight_ih_{suffix}", network)
        weights.recurrent_t[number, ..., :hidden] = _gates(model, f"weight_hh_{suffix}", network)
        if model.rnn.bias:
            _add_biases(model, network, weights, number, suffix)

    if model.initial_state is not None:
        starts = (weights.start_hidden, weights.start_cell)
        for start, values in zip(starts, model.initial_state.numpy(), strict=False):
            start[:, :hidden] = values

    if network.by_table:
        # In float64, so that the order of the sums does not matter: NumPy chooses it. Whether
        # numbers are finite is looked at in the logits.
        with np.errstate(all="ignore"):
            for direction in range(directions):
                products = embedding.astype(np.float64) @ weights.input_t[direction]  # (G, V, H')
                weights.table[direction] = products + weights.bias[direction, :, None]

    weights.head_t[:, : network.classes] = model.head.weight.numpy().T
    weights.head_bias[: network.classes] = model.head.bias.numpy()
    return weights


def _gates(model: RNNClassifier, name: str, network: Network) -> Array:
    """Return a matrix (G * H, K) transposed, gate by gate, (G, K, H)."""
    matrix = model.rnn.get_parameter(name).numpy()
    return matrix.reshape(network.products, network.hidden, -1).transpose(0, 2, 1)


def _add_biases(
    model: RNNClassifier, network: Network, weights: Weights, number: int, suffix: str
) -> None:
    """Add up the two biases of a layer and direction where the program adds one."""
    hidden = network.hidden
    shape = (network.products, hidden)
    of_input = model.rnn.get_parameter(f"bias_ih_{suffix}").numpy().reshape(shape)
    recurrent = model.rnn.get_parameter(f"bias_hh_{suffix}").numpy().reshape(shape).copy()

    # n = tanh(W_in x + b_in + r (W_hn h + b_hn)): the last one stays where the gate multiplies it.
    if network.cell == GRU:
        weights.recurrent_bias[number, :hidden] = recurrent[2]
        recurrent[2] = 0
    weights.bias[number, :, :hidden] = of_input + recurrent


# --- the machine code and where it is kept


class Functions(NamedTuple):
    """The entry points of the program, as machine code."""

    pack: Callable[..., Any]
    logits: Callable[..., Any]


class StreamFunctions(NamedTuple):
    """The entry points of the program that reads a few tokens at a time, as machine code."""

    begin: Callable[..., Any]
    classes: Callable[..., Any]


# The members of a sweep are threads of one process: the first of them compiles, the others wait.
_loaded: list[Functions] = []
_loaded_stream: list[StreamFunctions] = []
_loading = threading.Lock()


def load_program() -> Functions:
    """Return the compiled functions, from the folder where they are kept if they are there."""
    with _loading:
        if not _loaded:
            # All sources, because a function is compiled together with those that it calls.
            modules = (kernels, gates, batches, inference)
            functions = load(modules, _functions, _warm_up, "evaluation and prediction", seconds=6)
            _loaded.append(functions)
        return _loaded[0]


def load_stream_program() -> StreamFunctions:
    """Return the compiled functions that read a few tokens at a time, as `load_program` does.

    They are a program of their own, because most evaluations have no need of them.
    """
    with _loading:
        if not _loaded_stream:
            modules = (kernels, gates, batches, inference, streaming)
            what = "reading of long sequences"
            functions = load(modules, _stream_functions, _warm_up_stream, what, seconds=5)
            _loaded_stream.append(functions)
        return _loaded_stream[0]


def _functions(compiled: Callable[..., Any]) -> Functions:
    """Return the functions, which Numba compiles, or reads, when first called."""
    return Functions(
        pack=compiled(batches.pack),
        logits=compiled(inference.logits),
    )


def _stream_functions(compiled: Callable[..., Any]) -> StreamFunctions:
    return StreamFunctions(
        begin=compiled(streaming.begin),
        classes=compiled(streaming.classes),
    )


def _warm_up(functions: Functions) -> None:
    """Call all functions, so that they are compiled now: Numba compiles for types."""
    network, weights = _smallest()

    # One sequence of one token.
    one = np.ones(1, np.int64)
    given = Given(np.zeros(1, np.int32), np.zeros(1, np.int64), one, np.array([0, 1]))
    layout = make_layout(BatchSize(1, 1, 1))
    functions.pack(given, 0, 0, 1, layout)

    kept = np.zeros((2, 0, 2), np.float32)
    out = np.zeros((1, len(weights.head_bias)), np.float32)
    functions.logits(network, weights, layout, 0, 1, kept, make_work(network), out)


def _warm_up_stream(functions: StreamFunctions) -> None:
    """As `_warm_up`."""
    network, weights = _smallest()
    work = make_work(network)
    nothing = np.zeros(0, np.int64)
    layout = BatchLayout(nothing, nothing, nothing, nothing, np.zeros(1, np.int32), nothing)
    kept = np.zeros((2, 0, 2), np.float32)
    logits = np.zeros((1, len(weights.head_bias)), np.float32)
    functions.begin(network, weights, work)
    functions.classes(network, weights, layout, kept, work, logits, np.zeros((1, 1), np.int64))


def _smallest() -> tuple[Network, Weights]:
    """Return a network of one unit, which has the types of every other."""
    network = Network(
        cell=TANH,
        width=1,
        hidden=1,
        layers=1,
        directions=1,
        classes=1,
        last=True,
        mean=False,
        largest=False,
        skip=False,
        by_table=True,
    )
    weights = make_weights(network, np.zeros((1, 1), np.float32))
    return network, weights
