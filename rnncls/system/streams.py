"""stdout and stderr that cannot end a run: their reader may leave, their terminal may hang up, the disk may be full."""

import errno
import os
import sys
from typing import Any, TextIO, cast

from rnncls.errors import Problem, WriteError


class LenientStream:
    """A text stream that falls silent when nobody can read it any more.

    stderr is silent after any error. stdout is the result: only a reader that left (EPIPE) may be ignored there,
    anything else raises WriteError.
    """

    def __init__(self, stream: TextIO, is_result: bool) -> None:
        self.stream, self.is_result = stream, is_result

    def write(self, text: str) -> int:
        """As of a text stream. Raises WriteError."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._fall_silent(error)
            return len(text)

    def flush(self) -> None:
        """As of a text stream. Raises WriteError."""
        try:
            self.stream.flush()
        except OSError as error:
            self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())  # what is still buffered goes there too
        os.close(nowhere)
        if self.is_result and error.errno != errno.EPIPE:
            remedy = "another place for the results"
            raise WriteError(
                Problem(f"cannot write: {error.strerror}", "stdout", remedy=remedy, id="R9")
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def make_streams_lenient() -> None:
    """Wrap sys.stdout and sys.stderr. What their encoding cannot express is written with backslashes."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent: its number must not become that of another file
            stream = _nowhere(descriptor)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast(TextIO, LenientStream(stream, name == "stdout")))


def _nowhere(descriptor: int) -> TextIO:
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "w", encoding="utf-8", closefd=False)
