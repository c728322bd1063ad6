"""Stores a run's parameters, gradients and optimizer state end to end, in one tensor.

The compiled and the stacked steps work on that tensor. Model and optimizer hold views of it, so
that evaluation, checkpoints and eager steps see ordinary PyTorch objects.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rnncls.config import Config
from rnncls.steps.optim import state_names
from rnncls.steps.state import TrainState

# The rows of the storage, each with one number per parameter element.
WEIGHTS = 0
GRADIENTS = 1
# Adam's exp_avg and exp_avg_sq. SGD keeps its momentum buffers in the first of them.
FIRST_MOMENTS = 2
SECOND_MOMENTS = 3
ROWS = 4

# 64 bytes, in floats.
CACHE_LINE = 16


def zero_rows(size: int, *leading: int, device: torch.device | None = None) -> Tensor:
    """Return zeros (*leading, ROWS, size), in which each row begins at a cache line."""
    # The number of lines is rounded up. What that adds to a row is cut off the view again.
    lines = -(-size // CACHE_LINE)
    return torch.zeros(*leading, ROWS, lines * CACHE_LINE, device=device)[..., :size]


class FlatStorage:
    """Makes the tensors of one run's model and optimizer views of one flat tensor.

    `flat`: (ROWS, P) for the P elements of all parameters; `counts`: the optimizer's step count of
    each parameter, as Adam keeps it. Both are made here unless given.
    """

    def __init__(
        self,
        state: TrainState,
        settings: Config,
        flat: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> None:
        self.optimizer = state.optimizer
        self.names = state_names(settings.optimizer)
        self.parameters = list(state.model.parameters())

        size = sum(parameter.numel() for parameter in self.parameters)
        self.flat = zero_rows(size) if flat is None else flat
        self.counts = torch.zeros(len(self.parameters)) if counts is None else counts
        self.views = [self._views_of(row) for row in self.flat]  # by row and parameter

        # Only the memory of the parameters is replaced. They stay the same objects, by which the
        # optimizer finds their states.
        for parameter, view in zip(self.parameters, self.views[WEIGHTS], strict=True):
            parameter.data = view.copy_(parameter.data)

        # PyTorch's optimizer has no state before its first update, and checkpoints show that.
        # So its state becomes our views with the first update, and not before.
        self.published = False
        self.attach()

    @property
    def updates(self) -> int:
        """The number of updates that the optimizer has done; for SGD 1 if there was any."""
        # SGD keeps no count. It only matters whether its next update is the first, which starts the
        # momentum.
        return int(self.counts[0]) if "step" in self.names else int(self.published)

    def attach(self) -> None:
        """Take over what an eager step has made: its own gradients, and a first optimizer state."""
        # `train_step` replaces all gradients at once, so the first one tells.
        gradients = self.views[GRADIENTS]
        if self.parameters[0].grad is not gradients[0]:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient

        # The first update was an eager one, or came with a checkpoint. The values of its state are
        # copied here, and then the views take its place.
        if not self.published and self.names and self.optimizer.state.get(self.parameters[0]):
            for parameter, entry in zip(self.parameters, self._optimizer_views(), strict=True):
                for name in self.names:
                    entry[name].copy_(self.optimizer.state[parameter][name])
            self._publish()

    def count(self, taken: int) -> None:
        """Note that this many updates were done on the flat tensor."""
        if taken:
            # In place, because the optimizer's "step" tensors are views of the counts.
            self.counts += taken
            if not self.published:
                self._publish()

    def _views_of(self, row: Tensor) -> list[Tensor]:
        """Return the part of a row (P,) that belongs to each parameter, in its shape."""
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = torch.split(row, sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def _publish(self) -> None:
        """Make the views the optimizer's state."""
        for parameter, entry in zip(self.parameters, self._optimizer_views(), strict=True):
            self.optimizer.state[parameter] = {name: entry[name] for name in self.names}
        self.published = True

    def _optimizer_views(self) -> Iterator[dict[str, Tensor]]:
        """Yield, for each parameter, our tensors under all names that optimizers give to them."""
        first_moments = self.views[FIRST_MOMENTS]
        second_moments = self.views[SECOND_MOMENTS]
        for step, first, second in zip(self.counts, first_moments, second_moments, strict=True):
            yield {"step": step, "exp_avg": first, "exp_avg_sq": second, "momentum_buffer": first}
