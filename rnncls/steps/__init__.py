"""Ways of taking training steps. All give the results of `train_step`, up to rounding."""

from rnncls.steps.eager import one_by_one, train_step
from rnncls.steps.engines import Engine, choose

__all__ = ["Engine", "choose", "one_by_one", "train_step"]
