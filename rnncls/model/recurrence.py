"""An nn.RNN whose forward and backward over packed sequences take time linear in their length.

gated.py has the GRU and the LSTM.

PyTorch slices its projected input once per time step, and the backward of each slice fills, copies
and adds a tensor as large as the whole input: quadratic in the length. Here, one direction of one
layer is one autograd function. Its forward is one product for all input projections, then one
product and one nonlinearity per time step. Its backward is one product per time step, and one
product for the gradient of each weight.

Letters: B sequences of S tokens in all, D directions, hidden_size H. Packed rows, (S, ...), stand
time step by time step; of step t there are sizes[t] rows, one for each sequence that still runs,
longest sequence first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.model.cells import State, state_of_layer
from rnncls.model.noise import Noise, NoiseOf, add_to, drawn

# w_ih, w_hh and, unless the layer has no bias, b_ih and b_hh.
Weights = Sequence[Tensor]

# f'(z) as a function of f(z), multiplied with a gradient in one pass and written in place.
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = torch.ops.aten.threshold_backward.grad_input


class PackedLayers(nn.RNNBase):
    """nn.RNN, nn.GRU and nn.LSTM with functions of ours for a direction of a layer: what is common.

    They have the same arguments, parameters, initialisation and, up to rounding, results as torch's
    modules. Input that is not packed, or not on the CPU, is left to PyTorch, which on CUDA calls
    cuDNN; but noise on states is ours on every device.
    """

    # Whether torch itself runs what had no function of ours when the run of this model began: a run
    # has one rounding until its end.
    as_before = False

    def is_ours(self, data: Tensor) -> bool:
        """Return whether our functions, and not PyTorch's, run these packed rows."""
        return data.device.type == "cpu"

    def direction(
        self,
        data: Tensor,
        sizes: list[int],
        start: State | None,
        weights: Weights,
        reverse: bool,
        noise: Noise | None = None,
    ) -> State:
        """Run one direction of one layer over packed rows.

        `data`: (S, input_size), longest sequence first. `start`: (B, H) each, or None for zeros.
        `noise`: that on what W_hh multiplies. Returns the state after every token, (S, H) each.
        """
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Return the outputs and the final states, as torch's module does.

        For a PackedSequence of (S, input_size) these are a PackedSequence of (S, D * H), and
        (D * num_layers, B, H) in the order in which the sequences were given; of the LSTM two.
        """
        if not isinstance(input, PackedSequence) or not self.is_ours(input.data):
            return super().forward(input, hx)  # type: ignore[no-any-return]

        # Inside, sequences stand longest first, as in the packed rows.
        if hx is not None:
            hx = self.permute_hidden(hx, input.sorted_indices)
            self.check_forward_args(input.data, hx, input.batch_sizes)
        state: State | None = hx if hx is None or isinstance(hx, tuple) else (hx,)

        data = input.data
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                data = F.dropout(data, self.dropout, self.training)

            # torch's order: layer by layer, and in each the directions.
            start = None if state is None else state_of_layer(self, layer, state)
            data, final = self.outputs_of_layer(layer, data, input.batch_sizes, start)
            finals.append(final)

        # A single layer is not copied.
        last = finals[0]
        if self.num_layers > 1:
            last = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        hidden: Any = last[0] if len(last) == 1 else last
        hidden = self.permute_hidden(hidden, input.unsorted_indices)
        output = PackedSequence(
            data, input.batch_sizes, input.sorted_indices, input.unsorted_indices
        )
        return output, hidden

    def outputs_of_layer(
        self,
        layer: int,
        data: Tensor,
        batch_sizes: Tensor,
        start: State | None,
        noise: NoiseOf | None = None,
    ) -> tuple[Tensor, State]:
        """Run all directions of one layer over packed rows, without dropout.

        `data`: (S, input_size), longest sequence first. `start`: (D, B, H) each, or None for zeros.
        Returns the outputs, (S, D * H), and the final states in the form of `start`.
        """
        num_directions = 2 if self.bidirectional else 1
        outputs = []
        finals = []
        for direction in range(num_directions):
            weights = self.all_weights[layer * num_directions + direction]
            of_direction = None
            if start is not None:
                of_direction = tuple(part[direction : direction + 1] for part in start)
            states, final = self.outputs_of_direction(
                data,
                batch_sizes,
                of_direction,
                weights,
                direction == 1,
                None if noise is None else noise(layer, direction),
            )
            outputs.append(states)
            finals.append(final)

        # A single direction is not copied.
        if num_directions == 1:
            return outputs[0], finals[0]
        return torch.cat(outputs, 1), tuple(torch.cat(parts) for parts in zip(*finals, strict=True))

    def outputs_of_direction(
        self,
        data: Tensor,
        batch_sizes: Tensor,
        start: State | None,
        weights: Weights,
        reverse: bool = False,
        noise: Noise | None = None,
    ) -> tuple[Tensor, State]:
        """Run one direction of one layer; `start` and the final state are (1, B, H) each."""
        sizes = batch_sizes.tolist()
        of_sequences = None if start is None else tuple(part[0] for part in start)
        states = self.direction(data, sizes, of_sequences, weights, reverse, noise)

        # Forwards, a sequence ends at its last token. In reverse it ends at its first one; the
        # first tokens are the first rows.
        if reverse:
            final = tuple(part[: sizes[0]] for part in states)
        else:
            last_tokens = torch.tensor(last_rows(sizes), device=data.device)
            final = tuple(part.index_select(0, last_tokens) for part in states)
        return states[0], tuple(part.unsqueeze(0) for part in final)


class PackedRNN(PackedLayers, nn.RNN):
    """An nn.RNN with a function of ours over packed sequences on the CPU; see `PackedLayers`."""

    def direction(
        self,
        data: Tensor,
        sizes: list[int],
        start: State | None,
        weights: Weights,
        reverse: bool,
        noise: Noise | None = None,
    ) -> State:
        """Run one direction of one layer; see `PackedLayers`."""
        hidden = None if start is None else start[0]
        return (run_layer(data, sizes, hidden, weights, self.nonlinearity, reverse, noise),)


def last_rows(sizes: list[int]) -> list[int]:
    """Return the row of each sequence's last token, longest sequence first.

    `sizes` are the batch sizes of a PackedSequence.

    >>> last_rows([3, 2, 1, 1])
    [6, 4, 2]
    """
    rows: list[int] = []
    end = sum(sizes)
    for size in reversed(sizes):
        # The first row of this step.
        end -= size
        # Later steps have the first len(rows) sequences; the others of this step end here.
        rows += range(end + len(rows), end + size)
    return rows


def run_layer(
    data: Tensor,
    sizes: list[int],
    start: Tensor | None,
    weights: Weights,
    nonlinearity: str,
    reverse: bool = False,
    noise: Noise | None = None,
) -> Tensor:
    """Run one direction of one layer and return the states after every token, (S, H).

    `data`: (S, input_size), time step by time step, sizes[t] rows for step t, longest sequence
    first. `start`: h_0 (B, H), or None for zeros. `weights`: w_ih (H, input_size), w_hh (H, H) and,
    unless the layer has no bias, b_ih (H,) and b_hh (H,). `noise`: that on what w_hh multiplies.
    """
    data, state, weights = in_precision(data, () if start is None else (start,), weights)
    hidden = state[0] if state else None

    # Both biases are added to the same sum, so one addition does; each gets its gradient.
    w_ih, w_hh, *biases = weights
    bias = biases[0] + biases[1] if biases else None
    output: Tensor = _Layer.apply(  # type: ignore[no-untyped-call]
        data, hidden, w_ih, w_hh, bias, sizes, nonlinearity, reverse, noise
    )
    return output


def noise_of_steps(
    noise: Noise | None, output: Tensor, sizes: list[int]
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Return what will be the state with noise that W_hh multiplies at each row, (S, H).

    Beside it stand its time steps; `with_noise` fills them. Without noise there are neither.
    `output`: (S, H), of the same type.
    """
    if noise is None:
        return None, ()
    noisy = drawn(noise, output)
    return noisy, torch.split(noisy, sizes)


def with_noise(
    before: Tensor, noisy_steps: tuple[Tensor, ...], t: int, noise: Noise | None
) -> Tensor:
    """Return what W_hh multiplies at step t: the state before it, (R, H), or that with noise."""
    if noise is None:
        return before
    return add_to(first_rows(noisy_steps[t], len(before)), before, noise.sigma)


def in_precision(data: Tensor, start: State, weights: Weights) -> tuple[Tensor, State, Weights]:
    """Return the same in the type in which autocast, if it is on, wants products.

    Autocast itself leaves products in place alone.
    """
    kind = data.device.type
    if not torch.is_autocast_enabled(kind):
        return data, start, weights
    dtype = torch.get_autocast_dtype(kind)
    cast_start = tuple(part.to(dtype) for part in start)
    return data.to(dtype), cast_start, [weight.to(dtype) for weight in weights]


class _Layer(torch.autograd.Function):
    """h_t = f(x_t W_ih' + b + h_(t-1) W_hh'), and its derivatives.

    With g_t the gradient of step t's pre-activations: g_t = f'(h_t) (dL/dh_t + g_(t+1) W_hh),
    dL/dx = g W_ih, dL/dW_ih = g' x, dL/dW_hh = sum over t of g_t' h_(t-1), dL/db = sum of g. Run in
    reverse, t + 1 comes before t. With noise, what W_hh multiplies stands for h_(t-1) in both
    products with it.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, data, start, w_ih, w_hh, bias, sizes, nonlinearity, reverse, noise
    ):
        # (S, H): x_t W_ih' + b of all steps. It becomes the states, in place.
        output = torch.mm(data, w_ih.t()) if bias is None else torch.addmm(bias, data, w_ih.t())
        steps = torch.split(output, sizes)
        activate = torch.tanh_ if nonlinearity == "tanh" else torch.relu_
        recurrent = w_hh.t()
        noisy, noisy_steps = noise_of_steps(noise, output, sizes)

        for t in time_order(sizes, reverse):
            previous = _previous_states(steps, sizes, start, t, reverse)
            if previous is not None:
                read = with_noise(previous, noisy_steps, t, noise)
                first_rows(steps[t], len(read)).addmm_(read, recurrent)
            activate(steps[t])

        ctx.save_for_backward(data, start, w_ih, w_hh, output, noisy)
        ctx.sizes = sizes
        ctx.nonlinearity = nonlinearity
        ctx.reverse = reverse
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output):  # type: ignore[no-untyped-def]
        data, start, w_ih, w_hh, output, noisy = ctx.saved_tensors
        sizes = ctx.sizes
        reverse = ctx.reverse

        # Becomes g, in place: row by row dL/dh_t, plus g_(t+1) W_hh, times f'(h_t).
        gradient = d_output.clone(memory_format=torch.contiguous_format)
        gradients = gradient.split(sizes)
        steps = output.split(sizes)
        d_start = None if start is None else torch.zeros_like(start)

        for t in reversed(time_order(sizes, reverse)):
            if ctx.nonlinearity == "tanh":
                _tanh_backward(gradients[t], steps[t], grad_input=gradients[t])
            else:
                _relu_backward(gradients[t], steps[t], 0, grad_input=gradients[t])

            # The first `known` rows come from step `source`; the others began at `start`.
            source, known = source_of(sizes, t, reverse)
            if known:
                first_rows(gradients[source], known).addmm_(first_rows(gradients[t], known), w_hh)
            if d_start is not None and known < sizes[t]:
                d_start[known : sizes[t]].addmm_(gradients[t][known:], w_hh)

        # One product for each gradient, over all steps at once.
        d_data = gradient.mm(w_ih) if ctx.needs_input_grad[0] else None
        d_w_ih = gradient.t().mm(data)
        if noisy is None:
            own, previous = _joined(gradient, output, sizes, start, reverse)
        else:
            # Its rows without a state before them are zeros.
            own, previous = gradient, noisy
        d_w_hh = own.t().mm(previous)
        d_bias = gradient.sum(0) if ctx.needs_input_grad[4] else None
        return d_data, d_start, d_w_ih, d_w_hh, d_bias, None, None, None, None


def _joined(
    gradient: Tensor, output: Tensor, sizes: list[int], start: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return g_t and h_(t-1) of all steps in two tensors, (R, H) each, for R rows with an h_(t-1).

    From h_0 = 0, one of them is all of `gradient` or `output` but step 0 and is not copied:
    forwards g_t, because every later step has a previous state, and in reverse h_(t-1), because
    every later step is one.
    """
    if start is not None:
        return gradient, states_before(output, sizes, start, reverse)

    # The first rows of each step that are rows of the next one, too.
    whole = gradient if reverse else output
    steps = torch.split(whole, sizes)
    parts = [first_rows(step, size) for step, size in zip(steps, sizes[1:], strict=False)]
    joined = torch.cat(parts) if parts else whole[:0]
    later = (output if reverse else gradient)[sizes[0] :]
    return (joined, later) if reverse else (later, joined)


def time_order(sizes: list[int], reverse: bool) -> range:
    """Return the time steps in the order in which a direction reads them."""
    return range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes))


def source_of(sizes: list[int], t: int, reverse: bool) -> tuple[int, int]:
    """Return the step that is read before step t, and how many rows of step t were in it.

    They are its first rows; the other ones begin at step t.

    >>> source_of([3, 2, 1], 1, reverse=True)
    (2, 1)
    """
    source = t + 1 if reverse else t - 1
    known = min(sizes[t], sizes[source]) if 0 <= source < len(sizes) else 0
    return source, known


def first_rows(step: Tensor, count: int) -> Tensor:
    """Return the first `count` rows: all of them without a call of torch."""
    return step if len(step) == count else step[:count]


def states_before(output: Tensor, sizes: list[int], start: Tensor | None, reverse: bool) -> Tensor:
    """Return the state before each row, (S, H), from the one after each row.

    `start`: h_0 (B, H), or None for zeros.
    """
    first = output.new_zeros(sizes[0], output.shape[1]) if start is None else start
    steps = torch.split(output, sizes)
    parts = []
    for t, size in enumerate(sizes):
        source, known = source_of(sizes, t, reverse)
        if known:
            parts.append(first_rows(steps[source], known))
        if known < size:
            parts.append(first[known:size])
    return torch.cat(parts)


def _previous_states(
    steps: tuple[Tensor, ...], sizes: list[int], start: Tensor | None, t: int, reverse: bool
) -> Tensor | None:
    """Return h_(t-1) for the first rows of step t, as many as have one that is not zero.

    Returns None if no row has one: the first step that is run, from h_0 = 0.
    """
    # Forwards, the sequences of step t are the first of those of step t - 1.
    if not reverse:
        return first_rows(steps[t - 1], sizes[t]) if t > 0 else start

    # In reverse, fewer sequences run at step t + 1; those that begin at step t come from `start`.
    known = steps[t + 1] if t + 1 < len(sizes) else steps[t][:0]
    if start is None:
        return known if len(known) else None
    return torch.cat([known, start[len(known) : sizes[t]]])
