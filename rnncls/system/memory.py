"""Running out of memory, main memory or the GPU's, as an error that says how much was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

from rnncls.config import Config
from rnncls.errors import as_out_of_memory


@contextmanager
def reporting_memory(config: Config) -> Iterator[None]:
    """Turn what Python and torch raise without memory into OutOfMemory."""
    # RuntimeError is what torch raises, and the base class of its OutOfMemoryError. OSError is what
    # the system answers.
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        asked_for = f"batches of {config.train.batch_size:,} sequences"
        if config.data.max_length:
            asked_for += f" of up to {config.data.max_length:,} tokens"

        out_of_memory = as_out_of_memory(error, asked_for)
        if out_of_memory is not None:
            raise out_of_memory from error
        raise
