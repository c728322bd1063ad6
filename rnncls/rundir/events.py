"""TensorBoard."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


@contextmanager
def reporting_disk_errors_later() -> Iterator[None]:
    """TensorBoard writes in threads of its own; their OSErrors come again in `RunLog.write`, which reports them."""
    before = threading.excepthook

    def hook(error: threading.ExceptHookArgs) -> None:
        if not isinstance(error.exc_value, OSError):
            before(error)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def log_images(folder: Path, images: dict[str, Any]) -> None:
    """Show pictures, (height, width, 3) uint8 by tag, in TensorBoard, in place of those before. Raises OSError."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    with SummaryWriter(str(folder)) as writer:
        for tag, image in images.items():
            writer.add_image(tag, image, dataformats="HWC")
