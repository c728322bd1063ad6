"""nn.GRU and nn.LSTM whose forward and backward over packed sequences take time linear in length.

As in recurrence.py, one direction of one layer is one autograd function. What a time step needs of
the gradient that reaches it is a product with numbers that the forward pass already knows. So these
factors are computed for all tokens at once, in the place where the gradients of the gates will
stand, and a time step of the backward pass is a few operations: the factors times the gradient, and
one product that passes it on. The gradient of each weight is one product over all tokens.

With noise, what W_h multiplies is the state before with noise, and nothing else changes.

Letters as in recurrence.py. Gates stand as torch has them: GRU r, z, n; LSTM i, f, g, o.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnncls.model.cells import State
from rnncls.model.noise import Noise
from rnncls.model.recurrence import (
    PackedLayers,
    Weights,
    first_rows,
    in_precision,
    noise_of_steps,
    source_of,
    states_before,
    time_order,
    with_noise,
)


class _PackedGated(PackedLayers):
    """What the two gated cells have in common: where no gradient is wanted, torch runs them."""

    def is_ours(self, data: Tensor) -> bool:
        """Return whether our functions, and not PyTorch's, run these packed rows.

        PyTorch's forward pass alone is linear in the length, too.
        """
        wants_gradient = torch.is_grad_enabled() and not self.as_before
        return wants_gradient and super().is_ours(data)


class PackedGRU(_PackedGated, nn.GRU):
    """An nn.GRU with a function of ours over packed sequences on the CPU; see `PackedLayers`."""

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
        data, state, weights = in_precision(data, start or (), weights)
        hidden = state[0] if state else None
        w_ih, w_hh, *biases = weights
        b_ih, b_hh = biases or (None, None)
        output: Tensor = _GRULayer.apply(  # type: ignore[no-untyped-call]
            data, hidden, w_ih, w_hh, b_ih, b_hh, sizes, reverse, noise
        )
        return (output,)


class PackedLSTM(_PackedGated, nn.LSTM):
    """An nn.LSTM with a function of ours over packed sequences on the CPU; see `PackedLayers`."""

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
        data, state, weights = in_precision(data, start or (), weights)
        hidden, cell = state or (None, None)

        # Both biases are added to the same sum, so one addition does; each gets its gradient.
        w_ih, w_hh, *biases = weights
        bias = biases[0] + biases[1] if biases else None
        states: State = _LSTMLayer.apply(  # type: ignore[no-untyped-call]
            data, hidden, cell, w_ih, w_hh, bias, sizes, reverse, noise
        )
        return states


class _GRULayer(torch.autograd.Function):
    """The GRU as in torch.nn.GRU, and its derivatives. With h the state before:

    r = s(W_ir x + b_ir + W_hr h + b_hr), z = s(W_iz x + b_iz + W_hz h + b_hz), s the sigmoid;
    m = W_hn h + b_hn, n = tanh(W_in x + b_in + r m), h' = n + z (h - n).

    With d = dL/dh' the gradients are (1 - z) (1 - n^2) d of what tanh is taken of, call it a;
    a m r (1 - r) and (h - n) z (1 - z) d of what r and z are the sigmoid of; a r of m. What flows
    on to h is z d and, through r, z and m, the product of their gradients with W_hh.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, data, start, w_ih, w_hh, b_ih, b_hh, sizes, reverse, noise
    ):
        rows = len(data)
        size = w_hh.shape[1]
        both = 2 * size  # of r and z

        # (S, 3H): the sums of r and z, and m. First their parts without h: m has no x in it.
        gates = data.new_empty(rows, 3 * size)
        new = torch.mm(data, w_ih[both:].t())  # (S, H), becomes n
        if b_ih is None:
            torch.mm(data, w_ih[:both].t(), out=gates[:, :both])
            gates[:, both:] = 0
        else:
            torch.addmm(b_ih[:both] + b_hh[:both], data, w_ih[:both].t(), out=gates[:, :both])
            gates[:, both:] = b_hh[both:]
            new += b_ih[both:]

        output = torch.empty_like(new)
        steps = torch.split(output, sizes)
        r, z, m = (torch.split(part, sizes) for part in gates.view(rows, 3, size).unbind(1))
        sums = torch.split(gates, sizes)
        sums_of_both = torch.split(gates[:, :both], sizes)
        news = torch.split(new, sizes)

        recurrent = w_hh.t()
        noisy, noisy_steps = noise_of_steps(noise, output, sizes)
        for t in time_order(sizes, reverse):
            before = _state_before(steps, sizes, start, t, reverse)
            if before is not None:
                sums[t].addmm_(with_noise(before, noisy_steps, t, noise), recurrent)
            sums_of_both[t].sigmoid_()
            news[t].addcmul_(r[t], m[t]).tanh_()
            if before is not None:
                torch.lerp(news[t], before, z[t], out=steps[t])
            else:
                torch.addcmul(news[t], news[t], z[t], value=-1, out=steps[t])

        ctx.save_for_backward(data, start, w_ih, w_hh, gates, new, output, noisy)
        ctx.sizes = sizes
        ctx.reverse = reverse
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output):  # type: ignore[no-untyped-def]
        data, start, w_ih, w_hh, gates, new, output, noisy = ctx.saved_tensors
        sizes = ctx.sizes
        reverse = ctx.reverse
        rows, size = new.shape
        before = states_before(output, sizes, start, reverse)  # (S, H)
        r, z, m = gates.view(rows, 3, size).unbind(1)

        # (S, 3, H): first the factors, then the gradients of the sums of r and z, and of m.
        factors = gates.new_empty(rows, 3, size)
        of_r, of_z, of_m = factors.unbind(1)
        of_new = torch.addcmul(new.new_ones(()), new, new, value=-1)
        of_new.addcmul_(of_new, z, value=-1)
        torch.mul(of_new, r, out=of_m)
        torch.mul(of_m, m, out=of_r)
        of_r.addcmul_(of_r, r, value=-1)
        torch.sub(before, new, out=of_z)
        of_z.mul_(z)
        of_z.addcmul_(of_z, z, value=-1)

        d_hidden = d_output.clone(memory_format=torch.contiguous_format)
        d_start = None if start is None else torch.zeros_like(start)
        flat = factors.view(rows, 3 * size)
        parts = [torch.split(part, sizes) for part in (d_hidden, factors, flat, z)]
        for t in reversed(time_order(sizes, reverse)):
            own, own_factors, own_flat, own_z = (part[t] for part in parts)
            own_factors.mul_(own.unsqueeze(1))

            # The first `known` rows come from step `source`; the others began at `start`.
            source, known = source_of(sizes, t, reverse)
            if known:
                target = first_rows(parts[0][source], known)
                target.addcmul_(first_rows(own, known), first_rows(own_z, known))
                target.addmm_(first_rows(own_flat, known), w_hh)
            if d_start is not None and known < len(own):
                target = d_start[known : len(own)]
                target.addcmul_(own[known:], own_z[known:])
                target.addmm_(own_flat[known:], w_hh)

        d_w_hh = flat.t().mm(before if noisy is None else noisy)
        d_b_hh = flat.sum(0) if ctx.needs_input_grad[5] else None

        # The side of x: what tanh is taken of instead of m.
        torch.mul(of_new, d_hidden, out=of_m)
        d_data = flat.mm(w_ih) if ctx.needs_input_grad[0] else None
        d_w_ih = flat.t().mm(data)
        d_b_ih = flat.sum(0) if ctx.needs_input_grad[4] else None
        return d_data, d_start, d_w_ih, d_w_hh, d_b_ih, d_b_hh, None, None, None


class _LSTMLayer(torch.autograd.Function):
    """The LSTM as in torch.nn.LSTM, and its derivatives. With h and c the state before:

    i, f, g, o are the sigmoid, for g the tanh, of W_i x + b_i + W_h h + b_h; c' = f c + i g and
    h' = o tanh(c').

    With d = dL/dh' and e = dL/dc' + o (1 - tanh^2 c') d the gradients of the four sums are
    i (1 - i) g e, f (1 - f) c e, i (1 - g^2) e and o (1 - o) tanh(c') d. What flows on to c is f e,
    and to h the product of these four with W_hh.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, data, start, start_cell, w_ih, w_hh, bias, sizes, reverse, noise
    ):
        rows = len(data)
        size = w_hh.shape[1]

        gates = torch.mm(data, w_ih.t()) if bias is None else torch.addmm(bias, data, w_ih.t())
        recurrent = w_hh.t()  # (H, 4H), as the gates are (S, 4H)
        cell, tanh_cell, output = (data.new_empty(rows, size) for _ in range(3))
        steps, cells, tanh_cells, sums = (
            torch.split(part, sizes) for part in (output, cell, tanh_cell, gates)
        )
        i, f, g, o = (torch.split(part, sizes) for part in gates.view(rows, 4, size).unbind(1))
        of_both = torch.split(gates[:, : 2 * size], sizes)  # i and f
        noisy, noisy_steps = noise_of_steps(noise, output, sizes)
        for t in time_order(sizes, reverse):
            before = _state_before(steps, sizes, start, t, reverse)
            if before is not None:
                sums[t].addmm_(with_noise(before, noisy_steps, t, noise), recurrent)
            of_both[t].sigmoid_()
            g[t].tanh_()
            o[t].sigmoid_()

            torch.mul(i[t], g[t], out=cells[t])
            cell_before = _state_before(cells, sizes, start_cell, t, reverse)
            if cell_before is not None:
                cells[t].addcmul_(f[t], cell_before)
            torch.tanh(cells[t], out=tanh_cells[t])
            torch.mul(o[t], tanh_cells[t], out=steps[t])

        ctx.save_for_backward(
            data, start, start_cell, w_ih, w_hh, gates, cell, tanh_cell, output, noisy
        )
        ctx.sizes = sizes
        ctx.reverse = reverse
        # The gradient of cells that nobody looks at is None, and not a tensor of zeros.
        ctx.set_materialize_grads(False)
        return output, cell

    @staticmethod
    @once_differentiable
    def backward(ctx, d_output, d_cell):  # type: ignore[no-untyped-def]
        data, start, start_cell, w_ih, w_hh, gates, cell, tanh_cell, output, noisy = (
            ctx.saved_tensors
        )
        sizes = ctx.sizes
        reverse = ctx.reverse
        rows, size = cell.shape
        before = noisy  # (S, H)
        if before is None:
            before = states_before(output, sizes, start, reverse)
        cell_before = states_before(cell, sizes, start_cell, reverse)  # (S, H)
        i, f, g, o = gates.view(rows, 4, size).unbind(1)

        # (S, 4, H): first the factors, then the gradients of the sums.
        factors = gates.new_empty(rows, 4, size)
        of_i, of_f, of_g, of_o = factors.unbind(1)
        torch.addcmul(i, i, i, value=-1, out=of_i)
        of_i.mul_(g)
        torch.addcmul(f, f, f, value=-1, out=of_f)
        of_f.mul_(cell_before)
        torch.mul(g, g, out=of_g)
        torch.addcmul(i, i, of_g, value=-1, out=of_g)
        torch.addcmul(o, o, o, value=-1, out=of_o)
        of_o.mul_(tanh_cell)
        to_cell = torch.addcmul(o, output, tanh_cell, value=-1)  # o (1 - tanh^2 c')

        d_hidden = _own_copy(d_output, output)
        d_cells = _own_copy(d_cell, cell)
        d_start = d_start_cell = None
        if start is not None:
            d_start = torch.zeros_like(start)
            d_start_cell = torch.zeros_like(start)

        flat = factors.view(rows, 4 * size)
        of_cell = factors[:, :3]
        of_output = factors[:, 3]
        everything = (d_hidden, d_cells, of_cell, of_output, flat, to_cell, f)
        parts = [torch.split(part, sizes) for part in everything]
        for t in reversed(time_order(sizes, reverse)):
            own, own_cell, own_of_cell, own_of_output, own_flat, own_to_cell, own_f = (
                part[t] for part in parts
            )
            own_cell.addcmul_(own, own_to_cell)
            own_of_cell.mul_(own_cell.unsqueeze(1))
            own_of_output.mul_(own)

            # The first `known` rows come from step `source`; the others began at `start`.
            source, known = source_of(sizes, t, reverse)
            if known:
                target = first_rows(parts[1][source], known)
                target.addcmul_(first_rows(own_cell, known), first_rows(own_f, known))
                first_rows(parts[0][source], known).addmm_(first_rows(own_flat, known), w_hh)
            if d_start is not None and d_start_cell is not None and known < len(own):
                d_start_cell[known : len(own)].addcmul_(own_cell[known:], own_f[known:])
                d_start[known : len(own)].addmm_(own_flat[known:], w_hh)

        d_data = flat.mm(w_ih) if ctx.needs_input_grad[0] else None
        d_bias = flat.sum(0) if ctx.needs_input_grad[5] else None
        d_w_ih = flat.t().mm(data)
        d_w_hh = flat.t().mm(before)
        return d_data, d_start, d_start_cell, d_w_ih, d_w_hh, d_bias, None, None, None


def _state_before(
    steps: tuple[Tensor, ...], sizes: list[int], start: Tensor | None, t: int, reverse: bool
) -> Tensor | None:
    """Return the state before each row of step t; None where it is zero for all of them.

    `start`: (B, H), or None for zeros.
    """
    source, known = source_of(sizes, t, reverse)
    if not known:
        return None if start is None else start[: sizes[t]]
    if known == sizes[t]:
        return first_rows(steps[source], known)

    # In reverse, some sequences begin at step t.
    if start is None:
        begin = steps[t].new_zeros(sizes[t] - known, steps[t].shape[1])
    else:
        begin = start[known : sizes[t]]
    return torch.cat([steps[source], begin])


def _own_copy(gradient: Tensor | None, like: Tensor) -> Tensor:
    """Return a copy of a gradient that may be written to; None stands for zeros."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient.clone(memory_format=torch.contiguous_format)
