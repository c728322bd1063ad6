"""The classifier: embedding -> nn.RNN, nn.LSTM or nn.GRU -> linear head on the final hidden state."""

import threading
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.config import Config
from rnncls.config import sizes as sizes_of
from rnncls.data import Padded
from rnncls.model.recurrence import PackedRNN
from rnncls.seeds import mix

_DRAWING = threading.Lock()  # torch has one generator for all threads
_MODULES: dict[str, Any] = {"rnn": PackedRNN, "lstm": nn.LSTM, "gru": nn.GRU}
_KERNELS: dict[str, Any] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "LSTM": torch.lstm,
    "GRU": torch.gru,
}


class RNNClassifier(nn.Module):
    """Many-to-one classification of packed sequences of token ids.

    For cell rnn, h_t = f(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh) with h_0 = 0 and f = tanh or relu; lstm and gru are
    torch.nn's, with c_0 = 0 as well. The logits are a linear function of the last layer's h at each sequence's own last
    token (and, when bidirectional, of the backward state at its first). Padding is never embedded and never seen by the
    recurrence.
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
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        options: dict[str, Any] = {
            "num_layers": num_layers,
            "bias": bias,
            "bidirectional": bidirectional,
        }
        if cell == "rnn":
            options |= {"nonlinearity": nonlinearity, "dropout": dropout}
        self.rnn: nn.RNNBase = _MODULES[cell](embedding_dim, hidden_size, **options)
        self.dropout = dropout  # between layers; see _layer_by_layer
        self.num_directions = 2 if bidirectional else 1
        self.head = nn.Linear(hidden_size * self.num_directions, num_classes)

    def forward(self, tokens: PackedSequence | Padded) -> Tensor:
        """Logits (B, num_classes), in the order in which the sequences were given.

        Padded sequences give the same as packed ones: in one direction padding comes after a sequence's last token,
        whose state is taken, and has no gradient. Raises ValueError for padded sequences in two directions.
        """
        if isinstance(tokens, Padded):
            summary = self._summary_of_padded(tokens)
        else:
            summary = self._summary(tokens._replace(data=self.embedding(tokens.data)))
        logits: Tensor = self.head(summary)
        return logits

    def _summary_of_padded(self, padded: Padded) -> Tensor:
        """Of each sequence the last layer's state at its own last token, (B, hidden_size)."""
        if self.num_directions == 2:
            raise ValueError("padded sequences cannot be run in reverse: padding would come first")
        embedded = self.embedding(padded.tokens.t())  # (T, B, embedding_dim)
        if self.training and self.dropout > 0:
            output, _ = self._layer_by_layer(embedded, None)
        else:
            output, _ = self.rnn(embedded)  # (T, B, hidden_size)
        place = (padded.lengths - 1).view(1, -1, 1).expand(1, -1, output.shape[2])
        return output.gather(0, place)[0]

    def _summary(self, packed: PackedSequence) -> Tensor:
        """The last layer's final state(s) of each sequence, (B, num_directions * hidden_size)."""
        dropout = self.dropout if self.training else 0
        if isinstance(self.rnn, PackedRNN) and (dropout == 0 or not packed.data.is_cuda):
            return self.rnn.summary(packed)
        if dropout > 0:
            _, hidden = self._layer_by_layer(packed.data, packed.batch_sizes)
            unsorted = packed.unsorted_indices
            hidden = hidden if unsorted is None else hidden.index_select(1, unsorted)
        else:
            _, hidden = self.rnn(
                packed
            )  # (num_layers * num_directions, B, hidden_size), for lstm with its c
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return hidden[-self.num_directions :].transpose(0, 1).flatten(1)

    def _layer_by_layer(self, data: Tensor, batch_sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """As torch.nn's module with dropout between its layers: outputs and final hidden states, longest first.

        `data`: packed, with its batch sizes, or (T, B, width) with None. Dropout is drawn by F.dropout from torch's
        generator, because cuDNN's own RNN dropout keeps its random state where no checkpoint and no seed reaches it.
        """
        rnn = self.rnn
        run = _KERNELS[rnn.mode]
        sequences = data.shape[1] if batch_sizes is None else int(batch_sizes[0])
        zeros = data.new_zeros(self.num_directions, sequences, rnn.hidden_size)
        start: Any = [zeros, zeros] if rnn.mode == "LSTM" else zeros
        weights: list[Tensor] = [weight for part in rnn.all_weights for weight in part]
        per_layer = len(weights) // rnn.num_layers
        finals = []
        for layer in range(rnn.num_layers):
            if layer > 0:
                data = F.dropout(data, self.dropout)
            options = (
                weights[layer * per_layer : (layer + 1) * per_layer],
                rnn.bias,
                1,
                0.0,
                True,
                rnn.bidirectional,
            )
            if batch_sizes is None:
                data, final, *_ = run(data, start, *options, False)
            else:
                data, final, *_ = run(data, batch_sizes, start, *options)
            finals.append(final)
        return data, torch.cat(finals)


def build_model(config: Config, sizes: tuple[int, int] | None = None) -> RNNClassifier:
    """A fresh model on the CPU whose weights are a pure function of its arguments. The global RNG is left alone.

    `sizes`: (number of tokens, number of classes), where the config does not say it.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(config.seed, "init"))
        model = _model_of(config, sizes)
        init_recurrence(model, config.model.recurrent_init, config.model.init_gain)
    return model


def tensor_shapes(
    config: Config, sizes: tuple[int, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the model's state_dict, all float32. Nothing is allocated."""
    with torch.device("meta"):
        return {
            name: tuple(tensor.shape)
            for name, tensor in _model_of(config, sizes).state_dict().items()
        }


def _model_of(config: Config, sizes: tuple[int, int] | None) -> RNNClassifier:
    options = config.model.model_dump(exclude={"recurrent_init", "init_gain"})
    return RNNClassifier(*(sizes or sizes_of(config)), **options)


@torch.no_grad()
def init_recurrence(model: RNNClassifier, recurrent_init: str, gain: float) -> None:
    """Set W_hh, of each gate, to a random orthogonal or the identity matrix with b_hh = 0, unless `recurrent_init` is
    default; then scale embedding, W_ih and W_hh by `gain`. The head keeps PyTorch's initialisation.
    """
    for name, parameter in model.rnn.named_parameters():
        if recurrent_init != "default" and name.startswith("weight_hh"):
            init = nn.init.orthogonal_ if recurrent_init == "orthogonal" else nn.init.eye_
            for gate in torch.split(parameter, model.rnn.hidden_size):
                init(gate)
        elif recurrent_init != "default" and name.startswith("bias_hh"):
            nn.init.zeros_(parameter)
        if name.startswith("weight"):
            parameter.mul_(gain)
    model.embedding.weight.mul_(gain)
