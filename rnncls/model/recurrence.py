"""An nn.RNN whose forward and backward over packed sequences take time linear in their length.

PyTorch slices its projected input once per time step, and the backward of each slice fills, copies
and adds a tensor as large as the whole input: quadratic in the length. Here, one direction of one
layer is one autograd function. Its forward is one product for all input projections, then one
product and one nonlinearity per time step. Its backward is one product per time step, and one
product for the gradient of each weight.

Letters: B sequences of S tokens in all, D directions, hidden_size H. Packed rows, (S, ...), stand
time step by time step; of step t there are sizes[t] rows, one for each sequence that still runs,
longest sequence first.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

STREAMED_ROWS = 8192  # tokens whose states are in memory at a time when no gradient is wanted

# f'(z) as a function of f(z), multiplied with a gradient in one pass and written in place.
_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_relu_backward = torch.ops.aten.threshold_backward.grad_input


class PackedRNN(nn.RNN):
    """An nn.RNN with the same arguments, parameters, initialisation and, up to rounding, results.

    Input that is not packed, or not on the CPU, is left to PyTorch, which on CUDA calls cuDNN.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """Return the outputs and the final states, as nn.RNN does.

        For a PackedSequence of (S, input_size) these are a PackedSequence of (S, D * H), and
        (D * num_layers, B, H) in the order in which the sequences were given.
        """
        if not isinstance(input, PackedSequence) or input.data.device.type != "cpu":
            return super().forward(input, hx)

        # Inside, sequences stand longest first, as in the packed rows.
        if hx is not None:
            hx = self.permute_hidden(hx, input.sorted_indices)
            self.check_forward_args(input.data, hx, input.batch_sizes)

        states, last_tokens = self._all_states(input, hx)

        # nn.RNN's order: layer by layer, and in each the directions.
        finals: list[Tensor] = []
        for directions in states:
            finals += _final_states(directions, last_tokens)
        hidden = self.permute_hidden(torch.stack(finals), input.unsorted_indices)

        output = PackedSequence(
            _side_by_side(states[-1]),
            input.batch_sizes,
            input.sorted_indices,
            input.unsorted_indices,
        )
        return output, hidden

    def summary(self, input: PackedSequence) -> Tensor:
        """Return the last layer's final states alone, (B, D * H), in the order of the input."""
        if input.data.device.type != "cpu":
            # (D * num_layers, B, H): the last D are the last layer's.
            _, hidden = super().forward(input)
            if self.bidirectional:
                return hidden[-2:].transpose(0, 1).flatten(1)
            return hidden[-1]

        if self._can_stream():
            summary = self._streamed_summary(input.data, input.batch_sizes.tolist())
        else:
            states, last_tokens = self._all_states(input, None)
            summary = _side_by_side(_final_states(states[-1], last_tokens))

        # Without indices, the sequences were given longest first.
        if input.unsorted_indices is None:
            return summary
        return summary.index_select(0, input.unsorted_indices)

    def _can_stream(self) -> bool:
        """Return whether a state is not needed any more once the next one is known."""
        # Backward needs all states, the reverse direction begins at the end, and dropout would have
        # to be drawn in another order than for the whole layer.
        drops = self.training and self.dropout > 0
        return not torch.is_grad_enabled() and not self.bidirectional and not drops

    def _streamed_summary(self, data: Tensor, sizes: list[int]) -> Tensor:
        """Return the last layer's final states, (B, H), longest sequence first.

        The time steps are run in chunks. Each chunk starts from the states in which the chunk
        before ended, so that memory does not grow with the length of the sequences.
        """
        final = data.new_empty(sizes[0], self.hidden_size)
        starts: list[Tensor | None] = [None] * self.num_layers

        # The first row of the chunk in `data`.
        row = 0

        for chunk in _chunks(sizes):
            # As many sequences reach this chunk, those that stand first.
            running = chunk[0]
            states = data[row : row + sum(chunk)]
            row += sum(chunk)

            for layer, weights in enumerate(self.all_weights):
                start = starts[layer]
                if start is not None:
                    start = start[:running]
                states = run_layer(states, chunk, start, weights, self.nonlinearity)
                # A copy, so that the other states of the chunk can be freed.
                starts[layer] = states[-chunk[-1] :].clone()

            # Sequences that continue are overwritten by a later chunk.
            final[:running] = states[torch.tensor(last_rows(chunk))]

        return final

    def _all_states(
        self, input: PackedSequence, hx: Tensor | None
    ) -> tuple[list[list[Tensor]], Tensor]:
        """Return the states (S, H) of each layer and direction, and each last token's row, (B,)."""
        data = input.data
        sizes = input.batch_sizes.tolist()
        weights: Sequence[Sequence[Tensor]] = self.all_weights
        # Autocast leaves in-place products alone, so data and weights are cast here, once.
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            data = data.to(dtype)
            weights = [[weight.to(dtype) for weight in part] for part in weights]

        num_directions = 2 if self.bidirectional else 1
        states: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                data = F.dropout(data, self.dropout, self.training)

            outputs = []
            for direction in range(num_directions):
                # nn.RNN numbers its weights and h_0 like this.
                number = layer * num_directions + direction
                start = None if hx is None else hx[number].to(data.dtype)
                reverse = direction == 1
                outputs.append(
                    run_layer(data, sizes, start, weights[number], self.nonlinearity, reverse)
                )
            states.append(outputs)
            data = _side_by_side(outputs)

        return states, torch.tensor(last_rows(sizes))


def _side_by_side(directions: list[Tensor]) -> Tensor:
    """Return the columns of all directions in one tensor; a single one is not copied."""
    return directions[0] if len(directions) == 1 else torch.cat(directions, 1)


def _final_states(directions: list[Tensor], last_tokens: Tensor) -> list[Tensor]:
    """Return the final states of one layer, (B, H) for each direction, longest sequence first."""
    # Forwards, a sequence ends at its last token.
    finals = [directions[0].index_select(0, last_tokens)]
    if len(directions) == 2:
        # The reverse direction ends at the first tokens, which are the first rows.
        finals.append(directions[1][: len(last_tokens)])
    return finals


def _chunks(sizes: list[int]) -> Iterator[list[int]]:
    """Cut the time steps into chunks of at most STREAMED_ROWS rows, but of at least one step."""
    chunk: list[int] = []
    rows = 0
    for size in sizes:
        if chunk and rows + size > STREAMED_ROWS:
            yield chunk
            chunk = []
            rows = 0
        chunk.append(size)
        rows += size
    yield chunk


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
    weights: Sequence[Tensor],
    nonlinearity: str,
    reverse: bool = False,
) -> Tensor:
    """Run one direction of one layer and return the states after every token, (S, H).

    `data`: (S, input_size), time step by time step, sizes[t] rows for step t, longest sequence
    first. `start`: h_0 (B, H), or None for zeros. `weights`: w_ih (H, input_size), w_hh (H, H) and,
    unless the layer has no bias, b_ih (H,) and b_hh (H,).
    """
    # Both biases are added to the same sum, so one addition does; each gets its gradient.
    w_ih, w_hh, *biases = weights
    bias = biases[0] + biases[1] if biases else None
    output: Tensor = _Layer.apply(  # type: ignore[no-untyped-call]
        data, start, w_ih, w_hh, bias, sizes, nonlinearity, reverse
    )
    return output


class _Layer(torch.autograd.Function):
    """h_t = f(x_t W_ih' + b + h_(t-1) W_hh'), and its derivatives.

    With g_t the gradient of step t's pre-activations: g_t = f'(h_t) (dL/dh_t + g_(t+1) W_hh),
    dL/dx = g W_ih, dL/dW_ih = g' x, dL/dW_hh = sum over t of g_t' h_(t-1), dL/db = sum of g. Run in
    reverse, t + 1 comes before t.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, data, start, w_ih, w_hh, bias, sizes, nonlinearity, reverse
    ):
        # (S, H): x_t W_ih' + b of all steps. It becomes the states, in place.
        output = torch.mm(data, w_ih.t()) if bias is None else torch.addmm(bias, data, w_ih.t())
        steps = torch.split(output, sizes)
        activate = torch.tanh_ if nonlinearity == "tanh" else torch.relu_
        recurrent = w_hh.t()

        for t in _time_order(sizes, reverse):
            previous = _previous_states(steps, sizes, start, t, reverse)
            if previous is not None:
                steps[t][: len(previous)].addmm_(previous, recurrent)
            activate(steps[t])

        ctx.save_for_backward(data, start, w_ih, w_hh, output)
        ctx.sizes = sizes
        ctx.nonlinearity = nonlinearity
        ctx.reverse = reverse
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output):  # type: ignore[no-untyped-def]
        data, start, w_ih, w_hh, output = ctx.saved_tensors
        sizes = ctx.sizes
        reverse = ctx.reverse

        # Becomes g, in place: row by row dL/dh_t, plus g_(t+1) W_hh, times f'(h_t).
        gradient = d_output.clone(memory_format=torch.contiguous_format)
        gradients = gradient.split(sizes)
        steps = output.split(sizes)
        d_start = None if start is None else torch.zeros_like(start)

        # (g_t, h_(t-1)) of each step, for its rows that have a previous state.
        pairs = []
        for t in reversed(_time_order(sizes, reverse)):
            if ctx.nonlinearity == "tanh":
                _tanh_backward(gradients[t], steps[t], grad_input=gradients[t])
            else:
                _relu_backward(gradients[t], steps[t], 0, grad_input=gradients[t])

            # At the first step from zero there is nothing to pass on.
            previous = _previous_states(steps, sizes, start, t, reverse)
            if previous is None:
                continue
            own = gradients[t][: len(previous)]
            pairs.append((own, previous))

            # The first `known` rows come from step `source`; the others began at `start`.
            source = t + 1 if reverse else t - 1
            known = min(sizes[t], sizes[source]) if 0 <= source < len(sizes) else 0
            if known:
                gradients[source][:known].addmm_(own[:known], w_hh)
            if d_start is not None and known < len(previous):
                d_start[known : len(previous)].addmm_(own[known:], w_hh)

        # One product for each gradient, over all steps at once.
        d_data = gradient.mm(w_ih) if ctx.needs_input_grad[0] else None
        d_w_ih = gradient.t().mm(data)
        own, previous = _joined(pairs, gradient, output, sizes[0], reverse, start is None)
        d_w_hh = own.t().mm(previous)
        d_bias = gradient.sum(0) if ctx.needs_input_grad[4] else None
        return d_data, d_start, d_w_ih, d_w_hh, d_bias, None, None, None


def _joined(
    pairs: list[tuple[Tensor, Tensor]],
    gradient: Tensor,
    output: Tensor,
    first: int,
    reverse: bool,
    from_zero: bool,
) -> tuple[Tensor, Tensor]:
    """Return g_t and h_(t-1) of all steps in two tensors, (R, H) each, for R rows with an h_(t-1).

    `first` is the number of rows of step 0, and `from_zero` says that h_0 = 0. Starting from zero,
    one of the two is all of `gradient` or `output` but step 0 and need not be copied: forwards g_t,
    because every later step has a previous state, and in reverse h_(t-1), because every later step
    is one.
    """
    if not pairs:
        return gradient[:0], output[:0]

    # In the order of the rows in `gradient` and `output`, which is that of the time steps.
    pairs = sorted(pairs, key=lambda pair: pair[0].storage_offset())
    slice_own = from_zero and not reverse
    slice_previous = from_zero and reverse
    own = gradient[first:] if slice_own else torch.cat([pair[0] for pair in pairs])
    previous = output[first:] if slice_previous else torch.cat([pair[1] for pair in pairs])
    return own, previous


def _time_order(sizes: list[int], reverse: bool) -> range:
    return range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes))


def _previous_states(
    steps: tuple[Tensor, ...], sizes: list[int], start: Tensor | None, t: int, reverse: bool
) -> Tensor | None:
    """Return h_(t-1) for the first rows of step t, as many as have one that is not zero.

    Returns None if no row has one: the first step that is run, from h_0 = 0.
    """
    # Forwards, the sequences of step t are the first of those of step t - 1.
    if not reverse:
        return steps[t - 1][: sizes[t]] if t > 0 else start

    # In reverse, fewer sequences run at step t + 1; those that begin at step t come from `start`.
    known = steps[t + 1] if t + 1 < len(sizes) else steps[t][:0]
    if start is None:
        return known if len(known) else None
    return torch.cat([known, start[len(known) : sizes[t]]])
