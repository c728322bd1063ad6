"""Engines take the training steps. Their results equal those of `train_step` up to rounding.

Start reading at `eager.train_step`, the reference, and `engines`, which says what an engine is.
"""

from rnncls.steps.eager import eager_steps, train_step
from rnncls.steps.engines import Engine, choose

__all__ = ["Engine", "choose", "eager_steps", "train_step"]
