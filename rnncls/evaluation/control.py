"""What the n-gram control of a run says of the same sequences, beside the model."""

from dataclasses import dataclass

from torch import Tensor

from rnncls.evaluation.mcnemar import mcnemar

# A p below it is called a difference.
LEVEL = 0.05


@dataclass(frozen=True)
class ControlReport:
    """The n-gram control beside a model, on the same sequences."""

    accuracy: float  # of the control
    errors: int  # of the control
    only_model: int  # sequences that the model alone gets right
    only_control: int  # sequences that the control alone gets right
    p: float  # of McNemar's exact test, two-sided
    verdict: str  # what that says, in one sentence
    checkpoint: str = ""  # of the control, and its step, if it is from a run
    step: int | None = None


def compare_with_control(model_wrong: Tensor, control_wrong: Tensor) -> ControlReport:
    """Compare which sequences, (R,) bool each, a model and its control get wrong; R > 0."""
    only_model = int((control_wrong & ~model_wrong).sum())
    only_control = int((model_wrong & ~control_wrong).sum())
    examples = len(model_wrong)
    errors = int(control_wrong.sum())
    p = mcnemar(only_model, only_control)
    return ControlReport(
        accuracy=1 - errors / examples,
        errors=errors,
        only_model=only_model,
        only_control=only_control,
        p=p,
        verdict=verdict(only_model, only_control, examples, p),
    )


def verdict(only_model: int, only_control: int, examples: int, p: float) -> str:
    """Return in one sentence whether recurrence adds anything on so many examples."""
    if p >= LEVEL:
        sequences = "this sequence shows" if examples == 1 else f"these {examples:,} sequences show"
        return f"recurrence adds nothing that {sequences} (p = {_p(p)})"

    points = _points(100 * abs(only_model - only_control) / examples)
    equals = "<" if p == 0 else "="
    if only_model > only_control:
        return f"recurrence adds {points} (p {equals} {_p(p)})"
    return f"the n-gram control is better by {points} (p {equals} {_p(p)})"


def control_lines(control: ControlReport, model_accuracy: float, majority: float) -> list[str]:
    """Return what a report says about the control."""
    return [
        f"majority class: {majority:.4f}; n-gram control: {control.accuracy:.4f}; "
        f"this model: {model_accuracy:.4f}",
        f"right alone: the n-gram control on {control.only_control:,}, "
        f"this model on {control.only_model:,}",
        control.verdict,
    ]


def _points(value: float) -> str:
    """Return points of per cent: "1.9 points", and small ones with two digits."""
    shown = f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
    return f"{shown} point" if shown == "1.0" else f"{shown} points"


def _p(p: float) -> str:
    """Return a p with the digits that mean something: 0.42, 0.013, 3e-5."""
    if p == 0:
        return "1e-300"
    if p >= 0.001:
        return f"{p:.2g}"
    digits, _, exponent = f"{p:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"
