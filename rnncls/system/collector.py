"""Keeps Python's collector of cycles away from objects that live as long as the process."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """Collect nothing meanwhile, and leave out of later collections all that is there at the end.

    For imports and what is loaded with them. The collector looks at every object again and again as
    more are made. torch alone has a quarter of a million, which took an eighth of the time of one
    prediction, and of very many.

    For commands, whose process is their own. In another process, cycles that other code has made
    would never be collected.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
