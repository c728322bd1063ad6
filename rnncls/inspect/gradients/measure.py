"""The gradient through time of a trained model: how much of it reaches each earlier step."""

import copy
from pathlib import Path

import torch

from rnncls.config import Config, SumModConfig, number
from rnncls.data import Batch
from rnncls.inspect.gradients.view import Gradients, LayerGradients
from rnncls.inspect.subject import Subject, own_sequences, require_recurrence
from rnncls.model.bounds import bounded, bytes_per_token
from rnncls.model.cells import DIRECTIONS
from rnncls.model.classifier import RNNClassifier
from rnncls.model.gradient_flow import Kind, flow_of, verdict_in_all, verdict_of
from rnncls.model.losses import sequence_losses
from rnncls.model.probes import gradients_through_time
from rnncls.predict.logits import MOST_LOGITS, rows_together

NUM_SEQUENCES = 64  # sequences that are measured together

# What the states of all steps may take, which are in memory together for the way back, and the most
# steps of a sequence: each costs a fraction of a millisecond.
MOST_BYTES = 2**27
MOST_STEPS = 2**12


def gradients_of(subject: Subject, data_dir: Path | None = None) -> Gradients:
    """Measure the gradient through time on up to 64 sequences of the model's own data.

    A copy of the network in float64, on the CPU, is measured: a trained one is so sure that p - y
    is 0 in float32. Of long sequences there are fewer, and of very long ones the last tokens alone,
    run as if nothing came before them: the states of all steps are in memory together.

    The loss is that of whole sequences, whatever the objective of the training. Ratios and verdicts
    are about the gradient that leaves the last states alone, and so about what time does to it.

    Raises: ConfigError for a model without recurrent layers. DataError if files are missing or bad.
    CheckpointError if they have changed.
    """
    require_recurrence(subject, "--gradients")
    config = subject.checkpoint.config
    # In float64, and with their gradients, logits take four times as much.
    count = min(NUM_SEQUENCES, rows_together(subject.network, MOST_LOGITS // 4))
    all_sequences = own_sequences(subject, count, progress=True, data_dir=data_dir)
    most_tokens = MOST_BYTES // bytes_per_token(subject.network)
    most_steps = max(1, min(MOST_STEPS, most_tokens))
    sequences = bounded(all_sequences, most_steps, most_tokens)

    # The weights' own gradients are not asked for, and nothing need be kept for them.
    network = copy.deepcopy(subject.network).cpu().double().requires_grad_(False)
    batch = sequences.batch(torch.arange(len(sequences)))
    with torch.no_grad():
        loss = sequence_losses(network(batch.tokens), batch.labels).mean().item()

    layers = _layers_of(network, batch)
    kind = verdict_in_all(layer.verdict for layer in layers)
    is_cut = int(all_sequences.lengths.max()) > most_steps
    return Gradients(
        num_sequences=len(sequences),
        num_tokens=len(sequences.tokens),
        cut_to=most_steps if is_cut else None,
        loss=loss,
        layers=layers,
        kind=kind,
        pooling=network.pooling,
        is_direct=network.pooling != "last" or config.train.objective == "prefix",
        notes=_notes_on(config),
        remedies=remedies_of(kind, config),
    )


def _layers_of(network: RNNClassifier, batch: Batch) -> list[LayerGradients]:
    """Return the gradient of every layer and direction, the lowest layer first."""
    from_ends = gradients_through_time(network, batch.tokens, batch.labels, from_ends=True)
    whole = from_ends
    if network.pooling != "last":
        whole = gradients_through_time(network, batch.tokens, batch.labels)

    layers = []
    sizes = batch.tokens.batch_sizes
    for layer, of_directions in enumerate(from_ends):
        for direction, gradient in enumerate(of_directions):
            is_reverse = direction == 1
            flow = flow_of(gradient, sizes, is_reverse)
            norms = flow_of(whole[layer][direction], sizes, is_reverse).norms
            verdict = verdict_of(flow)
            layers.append(LayerGradients(layer, DIRECTIONS[direction], flow, norms, verdict))
    return layers


def _notes_on(config: Config) -> list[str]:
    """Return how the gradient of the training differs from the one that is measured."""
    notes = []
    if config.train.objective == "prefix":
        notes.append("of the whole sequence; training also has the loss of every prefix")
    after = config.train.truncate_after
    if after is not None:
        notes.append(f"not cut off; training has gradients for the last {after:,} tokens alone")
    return notes


def remedies_of(kind: Kind, config: Config) -> list[str]:
    """Return what could help, as settings that this run does not have yet."""
    if kind not in ("vanishing", "exploding", "vanishing and exploding"):
        return []

    model = config.model
    remedies = []
    if kind != "exploding":
        remedies += _shorter_ways(config)
    if kind != "vanishing":
        clip = config.train.max_grad_norm
        if clip is None:
            remedies.append("train.max_grad_norm=1, which clips the gradient (now null)")
        else:
            remedies.append(f"train.max_grad_norm below {clip:g}, which clips the gradient now")
        gain = number(model.init_gain)
        if gain > 1:
            remedies.append(f"model.init_gain=1, smaller weights to begin with (now {gain:g})")

    if model.recurrent_init != "orthogonal":
        now = f"(now {model.recurrent_init})"
        remedies.append(f"model.recurrent_init=orthogonal, which keeps lengths {now}")
    if model.cell == "rnn":
        remedies.append("model.cell=gru or lstm, whose gates let the gradient pass (now rnn)")

    longest = config.data.max_length
    now = "no limit" if longest is None else f"{longest:,}"
    remedies.append(f"shorter sequences, at first: data.max_length (now {now})")
    return remedies


def _shorter_ways(config: Config) -> list[str]:
    """Return what gives early steps a way to the loss that is not as long as the sequence."""
    model = config.model
    if config.train.objective == "prefix" or model.pooling != "last":
        return []

    ways = []
    has_labels = isinstance(config.data, SumModConfig) or config.data.prefix_labels_field
    if has_labels and not model.bidirectional:
        ways.append("train.objective=prefix, a loss after every token (now sequence)")
    ways.append("model.pooling=mean or max, of all states and not the last (now last)")
    return ways
