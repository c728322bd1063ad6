"""Which curves TensorBoard shows in one chart, in its tab Custom Scalars."""

from typing import Any

from torch.utils.tensorboard import summary

# Each tag is a regular expression for the beginning of one: without its end, "val/accuracy" would
# stand for the accuracies of all lengths, too.
LAYOUT = {
    "learning": {
        "loss": ["Multiline", ["train/loss$", "val/loss$"]],
        "accuracy": ["Multiline", ["train/accuracy$", "val/accuracy$"]],
    },
    "lengths": {"accuracy by length": ["Multiline", ["val/accuracy_by_length/.*"]]},
    "optimizer": {
        "gradient norm": ["Multiline", ["train/grad_norm$"]],
        "learning rate": ["Multiline", ["train/lr$"]],
    },
}


def custom_scalars() -> Any:
    """Return the summary that lays out the tab Custom Scalars, for one event of a run."""
    return summary.custom_scalars(LAYOUT)  # type: ignore[no-untyped-call]
