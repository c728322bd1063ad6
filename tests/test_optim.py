"""Schedules and clipping against PyTorch's own."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from rnncls.config import OptimizerConfig, ScheduleConfig
from rnncls.steps.optim import build_optimizer, clip_grad_norm, learning_rate


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_update_is_that_of_torch_to_the_bit(name: Any) -> None:
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    config = OptimizerConfig(name=name, lr=0.01, weight_decay=0.1, **momentum)  # type: ignore[arg-type]
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(7))
    theirs = torch.nn.Parameter(ours.detach().clone())
    stock: Any = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizers = [
        build_optimizer([ours], config),
        stock[name]([theirs], lr=0.01, weight_decay=0.1, fused=True, **momentum),
    ]
    for _ in range(5):
        gradient = torch.randn(7)
        for optimizer, weights in zip(optimizers, (ours, theirs), strict=True):
            weights.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


def rates(
    name: str, warmup_steps: int, steps: int, lr: float = 0.1, min_lr: float = 0.001
) -> list[float]:
    kind: Any = name
    schedule = ScheduleConfig(name=kind, warmup_steps=warmup_steps, min_lr=min_lr)
    return [learning_rate(step, steps, lr, schedule) for step in range(steps)]


def torch_rates(schedule: str, warmup_steps: int, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    decay = steps - 1 - warmup_steps
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, decay, eta_min=0.001)
    elif schedule == "linear":
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, decay)
    else:
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    values = []
    for _ in range(warmup_steps, steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_schedules_are_torchs_after_a_linear_warm_up(name: str, warmup_steps: int) -> None:
    ours = rates(name, warmup_steps, 50)
    assert ours[:warmup_steps] == [0.1 * (step + 1) / 7 for step in range(warmup_steps)]
    assert ours[warmup_steps:] == pytest.approx(torch_rates(name, warmup_steps, 50), rel=1e-9)


def test_decaying_schedules_start_at_lr_and_end_at_min_lr_on_the_last_step() -> None:
    for name in ("linear", "cosine"):
        values = rates(name, 3, 20)
        assert values[3] == 0.1
        assert values[-1] == pytest.approx(0.001)


@pytest.mark.parametrize(("warmup_steps", "steps"), [(5, 5), (10, 5), (4, 5), (0, 1), (1, 1)])
def test_short_runs_stay_between_zero_and_lr(warmup_steps: int, steps: int) -> None:
    for name in ("constant", "linear", "cosine"):
        assert all(0 < value <= 0.1 for value in rates(name, warmup_steps, steps))


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clipping_scales_to_the_limit_and_reports_the_norm_before(scale: float) -> None:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4))]
    for parameter in parameters:
        parameter.grad = scale * torch.randn_like(parameter)
    before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    expected = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in before))
    assert float(clip_grad_norm(parameters, None)) == pytest.approx(expected, rel=1e-5)
    for parameter, gradient in zip(parameters, before, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    assert float(clip_grad_norm(parameters, 1.0)) == pytest.approx(expected, rel=1e-5)
    after = math.sqrt(
        sum(
            float(parameter.grad.square().sum())
            for parameter in parameters
            if parameter.grad is not None
        )
    )
    assert after == pytest.approx(min(expected, 1.0), rel=1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizers_take_the_textbook_step(name: str) -> None:
    """The step begins at w = 2 with the gradient 4.

    Adam's first step is lr * sign (Kingma and Ba 2015); AdamW decays apart from it.
    """
    parameter = nn.Parameter(torch.tensor([2.0]))
    kind: Any = name
    config = OptimizerConfig(name=kind, lr=0.1, weight_decay=0.5, eps=1e-12)
    optimizer = build_optimizer([parameter], config)
    parameter.grad = torch.tensor([4.0])
    optimizer.step()
    expected = {"adam": 2 - 0.1, "adamw": 2 - 0.1 * 0.5 * 2 - 0.1, "sgd": 2 - 0.1 * (4 + 0.5 * 2)}
    assert parameter.item() == pytest.approx(expected[name], rel=1e-5)
