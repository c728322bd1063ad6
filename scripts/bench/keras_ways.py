"""The training loop of Keras: a Sequential model and `train_on_batch`."""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.utils.rnn import pad_packed_sequence

from scripts.bench.jax_ways import AT_ONCE, ROUNDED_TO
from scripts.bench.regimes import LR, Regime
from scripts.bench.torch_ways import Run


def keras_loop(regime: Regime) -> Run:
    """Return a loop over 64 batches made beforehand: mask, Keras's own layers, clipping, Adam.

    Its initial weights are its own, so that its losses cannot be compared with ours.
    """
    os.environ.setdefault("KERAS_BACKEND", "jax" if find_spec("jax") else "torch")
    keras: Any = import_module("keras")
    num_tokens, num_classes = regime.task().sizes
    layers = keras.layers
    cell = {"rnn": layers.SimpleRNN, "gru": layers.GRU, "lstm": layers.LSTM}[regime.cell]

    # Token 0 is Keras's padding.
    stack = [layers.Embedding(num_tokens + 1, regime.embedding_dim, mask_zero=True)]
    for layer in range(regime.num_layers):
        is_last = layer == regime.num_layers - 1
        stack.append(cell(regime.hidden_size, return_sequences=not is_last))
    model = keras.Sequential([*stack, layers.Dense(num_classes)])
    model.compile(
        optimizer=keras.optimizers.Adam(LR, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    batches = []
    for batch in regime.task().batches(0, AT_ONCE):
        longest = int(batch.lengths.max()) if regime.bucketed else regime.max_length
        width = -(-longest // ROUNDED_TO) * ROUNDED_TO if regime.bucketed else longest
        tokens, lengths = pad_packed_sequence(batch.tokens, batch_first=True, total_length=width)
        inside = torch.arange(width) < lengths.unsqueeze(1)
        batches.append((((tokens + 1) * inside).numpy(), batch.labels.numpy()))
    place = 0

    def run(steps: int) -> int:
        nonlocal place
        for _ in range(steps):
            model.train_on_batch(*batches[place])
            place = (place + 1) % AT_ONCE
        return steps

    # Bucketed, there are a few shapes: all of them are compiled before any time is taken.
    run(AT_ONCE)
    return run
