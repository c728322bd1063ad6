"""A run's parameters, gradients and optimizer state end to end, where a step of our own works on them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from rnncls.config import Config
from rnncls.steps.optim import state_names
from rnncls.steps.state import TrainState

ROWS = 4  # weights, gradients, first moments (or momentum buffers), second moments
LINE = 16  # floats


def storage(size: int, *leading: int, device: torch.device | None = None) -> Tensor:
    """Zeros (*leading, ROWS, size), each row at the beginning of a cache line."""
    return torch.zeros(*leading, ROWS, -(-size // LINE) * LINE, device=device)[..., :size]


class FlatState:
    """Makes the model's tensors and the optimizer's state views of `flat` (ROWS, P) and `counts`, one per parameter."""

    def __init__(
        self,
        state: TrainState,
        settings: Config,
        flat: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> None:
        self.optimizer, self.names = state.optimizer, state_names(settings.optimizer)
        self.parameters = list(state.model.parameters())
        sizes = [parameter.numel() for parameter in self.parameters]
        self.flat = storage(sum(sizes)) if flat is None else flat
        self.counts = (
            torch.zeros(len(sizes)) if counts is None else counts
        )  # Adam counts for each parameter
        self.views = [
            [part.view(p.shape) for part, p in zip(row.split(sizes), self.parameters, strict=True)]
            for row in self.flat
        ]
        for parameter, view in zip(self.parameters, self.views[0], strict=True):
            parameter.data = view.copy_(parameter.data)
        self.published = False
        self.attach()

    @property
    def updates(self) -> int:
        """How many the optimizer has done; of SGD, whether there was one."""
        return int(self.counts[0]) if "step" in self.names else int(self.published)

    def attach(self) -> None:
        """Take over what an eager step has made: gradients of its own, and the optimizer's first state."""
        if self.parameters[0].grad is not self.views[1][0]:
            for parameter, gradient in zip(self.parameters, self.views[1], strict=True):
                parameter.grad = gradient
        if not self.published and self.names and self.optimizer.state.get(self.parameters[0]):
            for parameter, own in zip(self.parameters, self._own(), strict=True):
                for name in self.names:
                    own[name].copy_(self.optimizer.state[parameter][name])
            self._publish()

    def count(self, taken: int) -> None:
        """Note that so many updates were done."""
        if taken:
            self.counts += taken
            if not self.published:
                self._publish()

    def _publish(self) -> None:
        """From the first update on the optimizer has a state: the views."""
        for parameter, own in zip(self.parameters, self._own(), strict=True):
            self.optimizer.state[parameter] = {name: own[name] for name in self.names}
        self.published = True

    def _own(self) -> Iterator[dict[str, Tensor]]:
        for step, first, second in zip(self.counts, *self.views[2:], strict=True):
            yield {"step": step, "exp_avg": first, "exp_avg_sq": second, "momentum_buffer": first}
