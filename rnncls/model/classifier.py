"""The classifier: an embedding, then nn.RNN, nn.LSTM or nn.GRU, then a linear head."""

import threading
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.config import Config, number
from rnncls.config import sizes as sizes_of
from rnncls.data import Padded
from rnncls.model.layers import ignore_compaction, outputs_of_layer
from rnncls.model.recurrence import PackedRNN
from rnncls.seeds import mix

# torch has one generator for all threads: members of a sweep draw their weights one after another.
_DRAWING = threading.Lock()

_MODULES: dict[str, Any] = {"rnn": PackedRNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RNNClassifier(nn.Module):
    """Many-to-one classification of packed sequences of token ids.

    For cell rnn, h_t = f(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh) with h_0 = 0 and f = tanh or relu;
    lstm and gru are torch.nn's, with c_0 = 0 as well. The logits are a linear function of the last
    layer's h at each sequence's own last token (and, when bidirectional, of the backward state at
    its first token). Padding is never embedded and never seen by the recurrence.
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
    ) -> None:
        super().__init__()
        # The names of these three modules are those of the tensors in a checkpoint.
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)

        options: dict[str, Any] = {
            "num_layers": num_layers,
            "bias": bias,
            "bidirectional": bidirectional,
        }
        # The gated cells get no dropout of torch's, and their nonlinearities are fixed.
        if cell == "rnn":
            options |= {"nonlinearity": nonlinearity, "dropout": dropout}
        self.rnn: nn.RNNBase = _MODULES[cell](embedding_dim, hidden_size, **options)

        # Between layers; see _layer_by_layer.
        self.dropout = dropout
        if dropout > 0:
            ignore_compaction()
        self.num_directions = 2 if bidirectional else 1
        self.head = nn.Linear(hidden_size * self.num_directions, num_classes)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embedding.weight.device

    def forward(self, tokens: PackedSequence | Padded) -> Tensor:
        """Return the logits, (B, num_classes), in the order in which the sequences were given.

        Padded sequences give the same logits as packed ones. In one direction, padding comes after
        the last token, whose state is taken, so that padding has no influence and no gradient.

        Ids are packed by torch.nn.utils.rnn.pack_sequence, or by `rnncls.data.collate(...).tokens`:

        >>> from torch.nn.utils.rnn import pack_sequence
        >>> model = RNNClassifier(num_embeddings=10, num_classes=2)
        >>> ids = [torch.tensor([3, 1, 4]), torch.tensor([5])]
        >>> model(pack_sequence(ids, enforce_sorted=False)).shape
        torch.Size([2, 2])

        Raises: TypeError for anything that is neither packed ids nor `Padded`. ValueError if the
        model is bidirectional and the sequences are padded.
        """
        # The summary is what the head sees, (B, num_directions * hidden_size).
        if isinstance(tokens, Padded):
            summary = self._summary_of_padded(tokens)
        else:
            _require_packed_ids(tokens)

            # Real tokens only are embedded, (S, embedding_dim); batch sizes and order stay.
            embedded = tokens._replace(data=self.embedding(tokens.data))
            summary = self._summary(embedded)

        logits: Tensor = self.head(summary)
        return logits

    def _summary_of_padded(self, padded: Padded) -> Tensor:
        """Return the last layer's state at each sequence's own last token, (B, hidden_size)."""
        if self.num_directions == 2:
            raise ValueError("padded sequences cannot be run in reverse: padding would come first")

        embedded = self.embedding(padded.tokens.t())  # (T, B, embedding_dim)
        if self.training and self.dropout > 0:
            output, _ = self._layer_by_layer(embedded, None)
        else:
            output, _ = self.rnn(embedded)  # (T, B, hidden_size)

        # One index for each sequence and unit, (1, B, hidden_size), as `gather` wants it.
        last_step = (padded.lengths - 1).view(1, -1, 1).expand(1, -1, output.shape[2])
        return output.gather(0, last_step)[0]

    def _summary(self, packed: PackedSequence) -> Tensor:
        """Return the last layer's final state(s), (B, num_directions * hidden_size)."""
        dropout = self.dropout if self.training else 0

        # On CUDA, PackedRNN is cuDNN's RNN, whose dropout cannot be used: see _layer_by_layer.
        if isinstance(self.rnn, PackedRNN) and (dropout == 0 or not packed.data.is_cuda):
            return self.rnn.summary(packed)

        if dropout > 0:
            # Longest first; torch's own module, below, restores the given order by itself.
            _, hidden = self._layer_by_layer(packed.data, packed.batch_sizes)
            if packed.unsorted_indices is not None:
                hidden = hidden.index_select(1, packed.unsorted_indices)
        else:
            _, hidden = self.rnn(packed)
            # The LSTM returns its cell state as well.
            if isinstance(hidden, tuple):
                hidden, _ = hidden

        # hidden: (num_layers * num_directions, B, hidden_size)
        return hidden[-self.num_directions :].transpose(0, 1).flatten(1)

    def _layer_by_layer(self, data: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the torch.nn module one layer at a time, with dropout between the layers.

        `data` is packed, (S, width), with its batch sizes, or padded, (T, B, width), with None.
        Dropout is drawn by F.dropout from torch's generator, because cuDNN keeps the random state
        of its own RNN dropout where neither a checkpoint nor a seed reaches it.

        Returns the last layer's outputs and the final hidden states of all layers, longest first.
        """
        finals = []
        for layer in range(self.rnn.num_layers):
            if layer > 0:
                data = F.dropout(data, self.dropout)
            data, final = outputs_of_layer(self.rnn, layer, data, batch_sizes)
            finals.append(final[0])

        return data, torch.cat(finals)


def build_model(config: Config, sizes: tuple[int, int] | None = None) -> RNNClassifier:
    """Return a new model on the CPU whose weights are a pure function of the arguments.

    `sizes` is (number of tokens, number of classes), for configs that do not say it. The global
    random state is left alone.
    """
    # Only the CPU's generator is saved and restored: the model is built there, whatever the device.
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(config.seed, "init"))
        model = _model_of(config, sizes)
        init_recurrence(model, config.model.recurrent_init, number(config.model.init_gain))
    return model


def tensor_shapes(
    config: Config, sizes: tuple[int, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in the model's state_dict; nothing is allocated.

    All of them are float32. `sizes` is as for `build_model`.
    """
    # Tensors on the device "meta" have a shape and no memory.
    with torch.device("meta"):
        tensors = _model_of(config, sizes).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _model_of(config: Config, sizes: tuple[int, int] | None) -> RNNClassifier:
    # The sections of the config name the model's own arguments, except for its initialisation.
    num_tokens, num_classes = sizes or sizes_of(config)
    options = config.model.model_dump(exclude={"recurrent_init", "init_gain"})
    return RNNClassifier(num_tokens, num_classes, **options)


@torch.no_grad()
def init_recurrence(model: RNNClassifier, recurrent_init: str, gain: float) -> None:
    """Initialise the recurrent weights and scale embedding, W_ih and W_hh by `gain`, in place.

    If `recurrent_init` is "orthogonal" or "identity", each gate's W_hh becomes a random orthogonal
    or the identity matrix, with b_hh = 0. If it is "default", both keep PyTorch's initialisation,
    as the head always does.
    """
    for name, parameter in model.rnn.named_parameters():
        if recurrent_init != "default":
            if name.startswith("weight_hh"):
                _init_gates(parameter, recurrent_init, model.rnn.hidden_size)
            elif name.startswith("bias_hh"):
                nn.init.zeros_(parameter)

        # Of each layer and direction W_ih and W_hh, but no bias.
        if name.startswith("weight"):
            parameter.mul_(gain)

    model.embedding.weight.mul_(gain)


def _init_gates(weight: Tensor, recurrent_init: str, hidden_size: int) -> None:
    """Initialise W_hh, (num_gates * hidden_size, hidden_size), gate by gate."""
    # Each gate has a square matrix of its own; orthogonal as a whole would be something else.
    init = nn.init.orthogonal_ if recurrent_init == "orthogonal" else nn.init.eye_
    for gate in torch.split(weight, hidden_size):
        init(gate)


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
