"""Training loops of JAX: whole steps inside jitted scans, written out by hand."""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.data import Batch
from rnncls.training.states import new_state
from scripts.bench.regimes import LR, Regime
from scripts.bench.torch_ways import Run

AT_ONCE = 64  # batches of one scan
ROUNDED_TO = 25  # the lengths of bucketed batches, so that few shapes are compiled


def jax_scan(regime: Regime) -> Run:
    """Return a loop over 64 batches made beforehand, of one scan or, bucketed, of one step each."""
    many = jax_steps(regime)
    carry = jax_start(regime)
    batches = list(regime.task().batches(0, AT_ONCE))
    parts = [[batch] for batch in batches] if regime.bucketed else [batches]
    arrays = [jax_arrays(regime, part) for part in parts]
    place = 0

    def run(steps: int) -> int:
        nonlocal carry, place
        done = 0
        while done < steps:
            carry, losses = many(carry, arrays[place])
            done += len(parts[place])
            place = (place + 1) % len(parts)
        losses.block_until_ready()
        return done

    # Bucketed, there are a few shapes: all of them are compiled before any time is taken.
    run(AT_ONCE)
    return run


def jax_losses(regime: Regime, batches: list[Batch]) -> list[float]:
    """Return the losses of JAX's steps on these batches, from our initial weights."""
    many = jax_steps(regime)
    carry = jax_start(regime)
    losses: list[float] = []
    for batch in batches:
        carry, loss = many(carry, jax_arrays(regime, [batch]))
        losses += loss.tolist()
    return losses


def jax_start(regime: Regime) -> Any:
    """Return what the scan carries: our initial weights, Adam's two averages, and the step."""
    jnp: Any = import_module("jax.numpy")
    weights = {}
    for name, value in new_state(regime.task()).model.named_parameters():
        weights[name] = jnp.asarray(value.detach().cpu().numpy())

    first = {name: jnp.zeros_like(value) for name, value in weights.items()}
    second = {name: jnp.zeros_like(value) for name, value in weights.items()}
    return weights, first, second, 0.0


def jax_arrays(regime: Regime, batches: list[Batch]) -> Any:
    """Return padded tokens, lengths and labels of all batches, (K, ...) each.

    They are padded to the longest length of the regime, or of a bucketed batch, rounded up.
    """
    jnp: Any = import_module("jax.numpy")
    width = regime.max_length
    if regime.bucketed:
        longest = max(int(batch.lengths.max()) for batch in batches)
        width = -(-longest // ROUNDED_TO) * ROUNDED_TO

    padded = []
    for batch in batches:
        tokens, _ = pad_packed_sequence(batch.tokens, batch_first=True, total_length=width)
        padded.append(tokens)
    columns = (padded, [batch.lengths for batch in batches], [batch.labels for batch in batches])
    return tuple(jnp.asarray(torch.stack(column).numpy().astype(np.int32)) for column in columns)


def jax_cell(cell: str) -> Any:
    """Return a time step: (W_ih x + b_ih, states, W_hh, b_hh) -> the states after it, h first."""
    jax: Any = import_module("jax")
    jnp = jax.numpy
    sigmoid = jax.nn.sigmoid

    def rnn(projected: Any, states: Any, w_hh: Any, b_hh: Any) -> Any:
        (hidden,) = states
        return (jnp.tanh(projected + hidden @ w_hh.T + b_hh),)

    def gru(projected: Any, states: Any, w_hh: Any, b_hh: Any) -> Any:
        (hidden,) = states
        recurrent = hidden @ w_hh.T + b_hh
        of_r, of_z, of_n = jnp.split(projected, 3, -1)
        by_r, by_z, by_n = jnp.split(recurrent, 3, -1)
        update = sigmoid(of_z + by_z)
        new = jnp.tanh(of_n + sigmoid(of_r + by_r) * by_n)
        return (new + update * (hidden - new),)

    def lstm(projected: Any, states: Any, w_hh: Any, b_hh: Any) -> Any:
        hidden, memory = states
        i, f, g, o = jnp.split(projected + hidden @ w_hh.T + b_hh, 4, -1)
        memory = sigmoid(f) * memory + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(memory), memory

    return {"rnn": rnn, "gru": gru, "lstm": lstm}[cell]


def jax_steps(regime: Regime) -> Any:
    """Return a jitted scan of whole training steps: (carry, batches) -> (carry, losses)."""
    jax: Any = import_module("jax")  # with or without its types, the same checks
    jnp = jax.numpy
    # float32 means float32, as in `set_precision`: on a GPU, JAX's products would be TF32.
    jax.config.update("jax_default_matmul_precision", "float32")
    cell = jax_cell(regime.cell)
    num_states = 2 if regime.cell == "lstm" else 1

    def loss_of(weights: Any, padded: Any, lengths: Any, labels: Any) -> Any:
        longest = padded.shape[1]
        inputs = weights["embedding.weight"][padded.T]  # (T, B, E)
        alive = (jnp.arange(longest)[:, None] < lengths)[:, :, None]  # (T, B, 1)

        for layer in range(regime.num_layers):
            w_hh = weights[f"rnn.weight_hh_l{layer}"]
            b_hh = weights[f"rnn.bias_hh_l{layer}"]
            w_ih = weights[f"rnn.weight_ih_l{layer}"]
            projected = inputs @ w_ih.T + weights[f"rnn.bias_ih_l{layer}"]

            def step(states: Any, now: Any, w_hh: Any = w_hh, b_hh: Any = b_hh) -> Any:
                projected_now, alive_now = now
                moved = cell(projected_now, states, w_hh, b_hh)
                kept = zip(moved, states, strict=True)
                new = tuple(jnp.where(alive_now, one, other) for one, other in kept)
                return new, new[0]

            start = (jnp.zeros((len(lengths), regime.hidden_size)),) * num_states
            unroll = longest if longest <= 8 else 4
            final, inputs = jax.lax.scan(step, start, (projected, alive), unroll=unroll)

        logits = final[0] @ weights["head.weight"].T + weights["head.bias"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

    def train_step(carry: Any, batch: Any) -> Any:
        weights, first, second, count = carry
        loss, gradients = jax.value_and_grad(loss_of)(weights, *batch)

        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in gradients.values()))
        scale = jnp.minimum(1.0, 1.0 / (norm + 1e-6))
        gradients = {name: g * scale for name, g in gradients.items()}

        count = count + 1
        first = {name: 0.9 * first[name] + 0.1 * g for name, g in gradients.items()}
        second = {name: 0.999 * second[name] + 0.001 * g * g for name, g in gradients.items()}
        rate = LR / (1 - 0.9**count)
        root = jnp.sqrt(1 - 0.999**count)
        moved = {}
        for name, weight in weights.items():
            moved[name] = weight - rate * first[name] / (jnp.sqrt(second[name]) / root + 1e-8)
        return (moved, first, second, count), loss

    def many(carry: Any, batches: Any) -> Any:
        return jax.lax.scan(train_step, carry, batches)

    return jax.jit(many, donate_argnums=0)
