"""Optimizer, learning-rate schedule and gradient clipping."""

import inspect
import math
from collections.abc import Iterable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from rnncls.config import OptimizerConfig, ScheduleConfig, number

# Added to the norm before dividing by it, as in torch.nn.utils.clip_grad_norm_.
CLIP_EPSILON = 1e-6


Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def _light(kind: type[Kind]) -> type[Kind]:
    """Return the same class of optimizers, but one that never imports torch._dynamo.

    torch.compile is not to look into `add_param_group`, which the constructor calls, nor to forget
    that `step` is without gradients, and to say so torch imports all of it: a second of CPU. The
    functions themselves are behind those that do.
    """
    inner = getattr(kind.add_param_group, "__wrapped__", kind.add_param_group)
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return cast(type[Kind], type(kind.__name__, (kind,), {"add_param_group": inner, "step": step}))


_SGD = _light(torch.optim.SGD)
_ADAM = _light(torch.optim.Adam)
_ADAMW = _light(torch.optim.AdamW)


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return Adam, AdamW or SGD for these parameters, with PyTorch's fused kernels.

    Those that want no gradient are left out: weight decay would move them as well.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    weight_decay = number(config.weight_decay)
    if config.name == "sgd":
        return _SGD(
            parameters,
            config.lr,
            momentum=config.momentum,
            weight_decay=weight_decay,
            fused=True,
        )

    adam = _ADAM if config.name == "adam" else _ADAMW
    return adam(
        parameters,
        config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=weight_decay,
        fused=True,
    )


def state_names(config: OptimizerConfig) -> set[str]:
    """Return the names of the tensors that the optimizer keeps for each parameter.

    They exist from the optimizer's first step on.
    """
    # Without momentum, SGD's update depends on the last gradient alone.
    if config.name == "sgd":
        return {"momentum_buffer"} if config.momentum > 0 else set()
    return {"step", "exp_avg", "exp_avg_sq"}


def learning_rate(step: int, max_steps: int, lr: float, schedule: ScheduleConfig) -> float:
    """Return the learning rate of the step with this index (0 is the first).

    Linear warm-up: lr (step + 1) / warmup_steps for the first warmup_steps. Then, with p running
    from 0 to 1 over the remaining steps, cosine: min_lr + (lr - min_lr) (1 + cos(pi p)) / 2
    (Loshchilov and Hutter 2017, eq. 5, without restarts), or linear: lr + (min_lr - lr) p.
    """
    warmup_steps = number(schedule.warmup_steps)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule.name == "constant":
        return lr

    # A run may end within its warm-up, or one step after it: then nothing is left to decay.
    decay_steps = max(1, max_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / decay_steps)

    # The share of the way from min_lr up to lr.
    share = 1 - progress
    if schedule.name == "cosine":
        share = (1 + math.cos(math.pi * progress)) / 2
    return schedule.min_lr + (lr - schedule.min_lr) * share


def clip_scale(max_norm: float | Tensor, norm: Tensor) -> Tensor:
    """Return the factor that brings gradients with this norm down to `max_norm`; 1 if below it."""
    scale: Tensor = max_norm / (norm + CLIP_EPSILON)
    return scale.clamp(max=1)


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Return the 2-norm of all gradients together before clipping, a 0-d tensor.

    The gradients are scaled down in place to the norm `max_norm` if theirs is larger.
    """
    # The norm of the tensors' norms is the norm of all their elements, and takes few kernels.
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm is None:
        return norm

    # On CUDA, comparing on the host would wait for the device; scaling by 1 costs less.
    if norm.is_cuda or float(norm) > max_norm:
        torch._foreach_mul_(gradients, clip_scale(max_norm, norm))
    return norm
