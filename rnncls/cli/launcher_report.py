"""Tells torchrun why this process failed: its own report then says so, on whichever machine.

torchrun names a file for it and reads what PyTorch's `ErrorHandler` writes, see
torch/distributed/elastic/multiprocessing/errors. That handler would import torch, and call every
error by its traceback.
"""

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from rnncls.system.files import write_atomically

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def tell_launcher(
    message: str, exit_code: int, error_id: str = "", variables: Mapping[str, str] = os.environ
) -> None:
    """Write why this process fails to the file that torchrun has named, if it has.

    `message` is the block for people; what torchrun shows in its place is "py_callstack". A file
    that cannot be written is left out: the error that is being reported is the one that counts.
    """
    path = variables.get(ERROR_FILE)
    if not path:
        return

    extra = {
        "py_callstack": message,
        # Whole seconds as text: torchrun takes the earliest one for the cause of the others.
        "timestamp": str(int(datetime.now(UTC).timestamp())),
        "error_id": error_id,
    }
    content = {"message": {"message": message, "extraInfo": extra, "errorCode": exit_code}}
    # Whole or not at all: torchrun itself fails when it reads half of it.
    with suppress(OSError):
        if _is_ours(Path(path)):
            write_atomically(Path(path), json.dumps(content).encode(), durable=False)


def _is_ours(path: Path) -> bool:
    """Return whether a file may come to this place: not that of a link, a device or a pipe."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True
