"""Whether a network is healthy while it trains: numbers of a probe beside the step.

Nothing here belongs to the run, and nothing of the run is changed: networks, optimizer and totals
are copies, and what is random has a generator of its own.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.data import Task
from rnncls.errors import NonFiniteError
from rnncls.model.bounds import bounded, bytes_per_token
from rnncls.model.classifier import RNNClassifier
from rnncls.model.gradient_flow import first_over_last
from rnncls.model.probes import (
    activations_of,
    gradients_through_time,
    recurrent_block,
    saturation,
    spectral_radius_of,
    states_of,
)
from rnncls.steps.beside import copy_of, same_random_state
from rnncls.steps.eager import train_step
from rnncls.steps.state import TrainState

NUM_SEQUENCES = 16  # that a network is looked at with

# As for `rnncls explain --gradients`, but much less: a probe takes no longer than a few steps.
MOST_BYTES = 2**25
MOST_STEPS = 2**10
MOST_LOGITS = 2**20


def health_scalars(state: TrainState, task: Task) -> dict[str, float]:
    """Return how healthy the network is at this step, by TensorBoard tag.

    within/grad_ratio: how much of the gradient reaches the first tokens. within/spectral_radius_l0
    and so on: the largest |eigenvalue| of W_hh. within/saturated: the share of units that pass on
    hardly any gradient. within/off: the share of ReLU units that are 0 throughout.
    weights/norm, weights/grad_norm, weights/update_ratio: of each parameter, see `_of_weights`.

    What is not finite is NaN.
    """
    scalars = _within(state.model, task) | _of_weights(state, task)
    return {tag: value if math.isfinite(value) else math.nan for tag, value in scalars.items()}


def _within(model: RNNClassifier, task: Task) -> dict[str, float]:
    """Return what happens inside the network, on a few validation sequences.

    In float64, as a trained network is so sure that its gradient is 0 in float32. Of long sequences
    there are fewer, and of very long ones the last tokens alone. Nothing is said of a model without
    recurrent layers.
    """
    if not model.is_recurrent:
        return {}
    _, num_classes = task.sizes
    sequences = task.validation_sequences(max(1, min(NUM_SEQUENCES, MOST_LOGITS // num_classes)))
    most_tokens = MOST_BYTES // bytes_per_token(model)
    sequences = bounded(sequences, max(1, min(MOST_STEPS, most_tokens)), most_tokens)
    batch = sequences.batch(torch.arange(len(sequences)))

    network = copy.deepcopy(model).cpu().double().requires_grad_(False)
    # What time does to a gradient: where the head sees all states, its direct ways are left out.
    gradients = gradients_through_time(network, batch.tokens, batch.labels, from_ends=True)
    layers = states_of(network, batch.tokens)
    sizes = batch.tokens.batch_sizes

    scalars = {}
    if len(sizes) > 1:
        scalars["within/grad_ratio"] = _reach(gradients, sizes)
    for layer in range(model.rnn.num_layers):
        for direction in range(model.num_directions):
            suffix = "_reverse" if direction == 1 else ""
            radius = spectral_radius_of(recurrent_block(model, layer, direction).detach().cpu())
            scalars[f"within/spectral_radius_l{layer}{suffix}"] = radius

    is_relu = network.rnn.mode == "RNN_RELU"
    activations = _flat(activations_of(network, layers, sizes))
    shares = [saturation(activation, is_relu).mean() for activation in activations]
    scalars["within/saturated"] = float(torch.stack(shares).mean())
    if is_relu:
        off = torch.cat([(activation <= 0).all(0) for activation in activations])
        scalars["within/off"] = float(off.double().mean())
    return scalars


def _reach(gradients: Sequence[tuple[Tensor, ...]], batch_sizes: Tensor) -> float:
    """Return |dL/dh| at the first step over that at the last one.

    It is the geometric mean over all layers and directions, each of which counts the same.
    """
    ratios = [
        first_over_last(gradient, batch_sizes, reverse=direction == 1)
        for of_layer in gradients
        for direction, gradient in enumerate(of_layer)
    ]
    if any(ratio == 0 for ratio in ratios):
        return 0.0 if all(map(math.isfinite, ratios)) else math.nan
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _flat(layers: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [of_direction for of_layer in layers for of_direction in of_layer]


def _of_weights(state: TrainState, task: Task) -> dict[str, float]:
    """Return the 2-norm of each trained parameter, of its gradient, and how far a step moves it.

    norm is that of now. Gradient and update are those of the step that comes next; after the last
    step, that one once more. grad_norm is from before clipping. update_ratio is log10 of the
    2-norm of the change over that of the parameter: about -3 is usual.
    """
    trained = [(name, each) for name, each in state.model.named_parameters() if each.requires_grad]
    names = [name for name, _ in trained]
    now = [parameter.detach() for _, parameter in trained]
    norms = _norms(now)
    scalars = {f"weights/norm/{name}": norm for name, norm in zip(names, norms, strict=True)}
    if task.max_steps == 0:
        return scalars

    ahead = _one_step_ahead(state, task)
    gradient_norms = ahead.gradient_norms
    changes = _norms(list(torch._foreach_sub(ahead.weights, now)))
    for name, norm, of_gradient, change in zip(names, norms, gradient_norms, changes, strict=True):
        scalars[f"weights/grad_norm/{name}"] = of_gradient
        ratio = change / norm if norm else math.nan
        scalars[f"weights/update_ratio/{name}"] = math.log10(ratio) if ratio else math.nan
    return scalars


class _Ahead(NamedTuple):
    """What one more step makes of a network."""

    weights: list[Tensor]
    gradient_norms: list[float]  # before clipping; NaN if the step is not finite


def _one_step_ahead(state: TrainState, task: Task) -> _Ahead:
    """Take the next step with a copy of the state; after the last step, that one once more."""
    copied = copy_of(state, task.config)
    copied.step = min(state.step, task.max_steps - 1)
    batch = next(task.batches(copied.step, copied.step + 1)).to(copied.device)
    with suppress(NonFiniteError), same_random_state(copied):
        train_step(copied, batch, task)

    parameters = [each for each in copied.model.parameters() if each.requires_grad]
    weights = [parameter.detach() for parameter in parameters]
    # A step that is not finite is left out of the totals.
    if not copied.totals.steps:
        return _Ahead(weights, [math.nan] * len(weights))

    # Clipping has scaled all gradients by one factor.
    norms = _norms([_gradient_of(parameter) for parameter in parameters])
    norm = math.hypot(*norms)
    factor = copied.totals.grad_norm / norm if norm else 1.0
    return _Ahead(weights, [factor * one for one in norms])


def _gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter; zeros for one that is not trained."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _norms(tensors: list[Tensor]) -> list[float]:
    """Return the 2-norm of each tensor."""
    # Read together: each reading waits for the device.
    return torch.stack(torch._foreach_norm(tensors)).tolist()
