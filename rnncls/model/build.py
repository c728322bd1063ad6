"""Builds the model of a config, and draws its first weights."""

import threading

import torch
from torch import Tensor, nn

from rnncls.config import Config, FilesConfig, most_positions, number
from rnncls.config import sizes as sizes_of
from rnncls.model.classifier import RNNClassifier
from rnncls.model.inputs import InputDropout
from rnncls.seeds import mix

# The keys of the section that are no arguments of the model.
_OTHER_KEYS = {
    "recurrent_init",
    "init_gain",
    "embedding_gain",
    "positions",
    "embeddings",
    "freeze_embeddings",
    "embedding_dropout",
    "ngram_dropout",
    "head_dropout",
}

# torch has one generator for all threads: members of a sweep draw their weights one after another.
_DRAWING = threading.Lock()


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
        with torch.no_grad():
            model.embedding.weight.mul_(config.model.embedding_gain)
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
    options = config.model.model_dump(exclude=_OTHER_KEYS)
    if config.model.positions == "learned":
        options["num_positions"] = most_positions(config.data)
    model = RNNClassifier(
        num_tokens,
        num_classes,
        **options,
        input_dropout=input_dropout_of(config),
        has_unknown=isinstance(config.data, FilesConfig) and config.data.unknown == "unk",
    )
    model.embedding.weight.requires_grad_(not config.model.freeze_embeddings)
    return model


def input_dropout_of(config: Config) -> InputDropout:
    """Return the dropout probabilities outside the recurrence."""
    data = config.data
    model = config.model
    return InputDropout(
        tokens=data.token_dropout if isinstance(data, FilesConfig) else 0.0,
        ngrams=model.ngram_dropout if model.ngrams else 0.0,
        embedding=model.embedding_dropout,
        head=model.head_dropout,
    )


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
