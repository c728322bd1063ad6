"""nn.RNN with a forward and a backward of its own over packed sequences, linear in their length.

PyTorch slices its projected input once per time step, and the backward of each slice fills, copies and adds a tensor
as large as all of the input: quadratic in the length. Here one direction of one layer is one autograd function: one
product for all input projections, then a product and a nonlinearity per time step; backward a product per step, and one
for the gradient of each weight.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

STREAMED_ROWS = 8192  # tokens whose states are in memory at a time when no gradient is wanted

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = torch.ops.aten.threshold_backward.grad_input


class PackedRNN(nn.RNN):
    """torch.nn.RNN: its arguments, parameters, initialisation and, up to rounding, results.

    Input that is not packed, or not on the CPU, goes PyTorch's own way, which on CUDA is cuDNN.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """As of nn.RNN. For a PackedSequence of (S, input_size): the outputs, packed, (S, D * hidden_size), and the
        final states (D * num_layers, B, hidden_size) in the order in which the sequences were given.
        """
        if not isinstance(input, PackedSequence) or input.data.device.type != "cpu":
            return super().forward(input, hx)
        if hx is not None:
            hx = self.permute_hidden(hx, input.sorted_indices)
            self.check_forward_args(input.data, hx, input.batch_sizes)
        states, last = self._all_states(input, hx)
        finals = [
            _final(output, last, direction)
            for layer in states
            for direction, output in enumerate(layer)
        ]
        data = states[-1][0] if len(states[-1]) == 1 else torch.cat(states[-1], 1)
        hidden = self.permute_hidden(torch.stack(finals), input.unsorted_indices)
        return PackedSequence(
            data, input.batch_sizes, input.sorted_indices, input.unsorted_indices
        ), hidden

    def summary(self, input: PackedSequence) -> Tensor:
        """The last layer's final states alone, (B, D * hidden_size), in the order in which the sequences were given."""
        if input.data.device.type != "cpu":
            _, hidden = super().forward(input)
            return hidden[-2:].transpose(0, 1).flatten(1) if self.bidirectional else hidden[-1]
        if (
            not torch.is_grad_enabled()
            and not self.bidirectional
            and not (self.training and self.dropout > 0)
        ):
            summary = self._streamed(input.data, input.batch_sizes.tolist())
        else:
            states, last = self._all_states(input, None)
            finals = [
                _final(output, last, direction) for direction, output in enumerate(states[-1])
            ]
            summary = finals[0] if len(finals) == 1 else torch.cat(finals, 1)
        return (
            summary
            if input.unsorted_indices is None
            else summary.index_select(0, input.unsorted_indices)
        )

    def _streamed(self, data: Tensor, sizes: list[int]) -> Tensor:
        """The same, longest sequence first, some time steps after the other: no more states are kept than of these."""
        final = data.new_empty(sizes[0], self.hidden_size)
        starts: list[Tensor | None] = [None] * self.num_layers
        first = row = 0
        while first < len(sizes):
            last, rows = first + 1, sizes[first]
            while last < len(sizes) and rows + sizes[last] <= STREAMED_ROWS:
                last, rows = last + 1, rows + sizes[last]
            states, own = data[row : row + rows], sizes[first:last]
            for layer, weights in enumerate(self.all_weights):
                start = starts[layer]
                start = None if start is None else start[: own[0]]
                states = run_layer(states, own, start, weights, self.nonlinearity, reverse=False)
                starts[layer] = states[-own[-1] :].clone()
            final[: own[0]] = states[
                torch.tensor(last_rows(own))
            ]  # of those that go on, a later state comes
            first, row = last, row + rows
        return final

    def _all_states(
        self, input: PackedSequence, hx: Tensor | None
    ) -> tuple[list[list[Tensor]], Tensor]:
        """For each layer and direction the states (S, hidden_size); and the row of each sequence's last token (B,)."""
        data, sizes = input.data, input.batch_sizes.tolist()
        weights: Sequence[Sequence[Tensor]] = self.all_weights
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            data, weights = (
                data.to(dtype),
                [[weight.to(dtype) for weight in part] for part in weights],
            )
        directions, states = 2 if self.bidirectional else 1, list[list[Tensor]]()
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                data = F.dropout(data, self.dropout, self.training)
            outputs = []
            for number in range(layer * directions, (layer + 1) * directions):
                start = None if hx is None else hx[number].to(data.dtype)
                reverse = number % directions == 1
                outputs.append(
                    run_layer(data, sizes, start, weights[number], self.nonlinearity, reverse)
                )
            states.append(outputs)
            data = outputs[0] if directions == 1 else torch.cat(outputs, 1)
        return states, torch.tensor(last_rows(sizes))


def _final(output: Tensor, last: Tensor, direction: int) -> Tensor:
    """The final states of one direction, longest sequence first: the reverse one ends at the first tokens."""
    return output[: len(last)] if direction == 1 else output.index_select(0, last)


def last_rows(sizes: list[int]) -> list[int]:
    """The row of each sequence's last token, longest sequence first, from a PackedSequence's batch sizes.

    >>> last_rows([3, 2, 1, 1])
    [6, 4, 2]
    """
    rows: list[int] = []
    end = sum(sizes)
    for size in reversed(sizes):
        end -= size
        rows += range(end + len(rows), end + size)
    return rows


def run_layer(
    data: Tensor,
    sizes: list[int],
    start: Tensor | None,
    weights: Sequence[Tensor],
    nonlinearity: str,
    reverse: bool = False,
) -> Tensor:
    """One direction of one layer: the states (S, H) after every token.

    `data`: (S, D), time step by time step, `sizes[t]` rows for step t, longest sequence first; `start`: h_0 (B, H),
    None for zeros; `weights`: w_ih (H, D), w_hh (H, H) and, unless without bias, b_ih (H,) and b_hh (H,).
    """
    w_ih, w_hh, *biases = weights
    bias = biases[0] + biases[1] if biases else None
    output: Tensor = _Layer.apply(data, start, w_ih, w_hh, bias, sizes, nonlinearity, reverse)  # type: ignore[no-untyped-call]
    return output


class _Layer(torch.autograd.Function):
    """h_t = f(x_t W_ih' + b + h_(t-1) W_hh'), and its derivatives.

    With g_t the gradient of step t's pre-activations: g_t = f'(h_t) (dL/dh_t + g_(t+1) W_hh), dL/dx = g W_ih,
    dL/dW_ih = g' x, dL/dW_hh = sum over t of g_t' h_(t-1), dL/db = sum of g. Run in reverse, t + 1 comes before t.
    """

    @staticmethod
    def forward(ctx, data, start, w_ih, w_hh, bias, sizes, nonlinearity, reverse):  # type: ignore[no-untyped-def]
        output = torch.mm(data, w_ih.t()) if bias is None else torch.addmm(bias, data, w_ih.t())
        steps = torch.split(output, sizes)
        activate = torch.tanh_ if nonlinearity == "tanh" else torch.relu_
        recurrent = w_hh.t()
        for t in _order(sizes, reverse):
            if (before := _before(steps, sizes, start, t, reverse)) is not None:
                steps[t][: len(before)].addmm_(before, recurrent)
            activate(steps[t])
        ctx.save_for_backward(data, start, w_ih, w_hh, output)
        ctx.sizes, ctx.nonlinearity, ctx.reverse = sizes, nonlinearity, reverse
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output):  # type: ignore[no-untyped-def]
        data, start, w_ih, w_hh, output = ctx.saved_tensors
        sizes, reverse = ctx.sizes, ctx.reverse
        gradient = d_output.clone(memory_format=torch.contiguous_format)
        gradients, steps = gradient.split(sizes), output.split(sizes)
        d_start = None if start is None else torch.zeros_like(start)
        pairs = []  # (gradients of the pre-activations, states before) of the steps that have some
        for t in reversed(_order(sizes, reverse)):
            if ctx.nonlinearity == "tanh":
                _tanh_backward(gradients[t], steps[t], grad_input=gradients[t])
            else:
                _relu_backward(gradients[t], steps[t], 0, grad_input=gradients[t])
            if (before := _before(steps, sizes, start, t, reverse)) is None:
                continue
            own = gradients[t][: len(before)]
            pairs.append((own, before))
            source = t + 1 if reverse else t - 1
            known = min(sizes[t], sizes[source]) if 0 <= source < len(sizes) else 0
            if (
                known
            ):  # rows whose state before is that of step `source`; the others began at `start`
                gradients[source][:known].addmm_(own[:known], w_hh)
            if d_start is not None and known < len(before):
                d_start[known : len(before)].addmm_(own[known:], w_hh)
        d_data = gradient.mm(w_ih) if ctx.needs_input_grad[0] else None
        d_bias = gradient.sum(0) if ctx.needs_input_grad[4] else None
        own, before = _joined(pairs, gradient, output, sizes[0], reverse, start is None)
        return d_data, d_start, gradient.t().mm(data), own.t().mm(before), d_bias, None, None, None


def _joined(
    pairs: list[tuple[Tensor, Tensor]],
    gradient: Tensor,
    output: Tensor,
    first: int,
    reverse: bool,
    from_zero: bool,
) -> tuple[Tensor, Tensor]:
    """Rows of gradients and of the states before them, all steps in one. Copies only what does not lie in order."""
    if not pairs:
        return gradient[:0], output[:0]
    pairs = sorted(pairs, key=lambda pair: pair[0].storage_offset())
    own = gradient[first:] if from_zero and not reverse else torch.cat([pair[0] for pair in pairs])
    before = output[first:] if from_zero and reverse else torch.cat([pair[1] for pair in pairs])
    return own, before


def _order(sizes: list[int], reverse: bool) -> range:
    return range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes))


def _before(
    steps: tuple[Tensor, ...], sizes: list[int], start: Tensor | None, t: int, reverse: bool
) -> Tensor | None:
    """The states before step t, for the first so many of its rows as have one that is not zero by definition."""
    if not reverse:
        return steps[t - 1][: sizes[t]] if t > 0 else start
    known = steps[t + 1] if t + 1 < len(sizes) else steps[t][:0]
    if start is None:
        return known if len(known) else None
    return torch.cat([known, start[len(known) : sizes[t]]])
