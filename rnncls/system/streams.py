"""Wrap stdout and stderr so that they cannot end a run, and so that no text steers a terminal.

Their reader may leave, their terminal may hang up, and the disk behind them may be full. Where
stderr is a terminal, errors and warnings stand out in colour.

What is shown may quote files and names from anywhere. Each is put on one line where it is shown
(`errors.on_one_line`, `say`); what is written to a terminal is escaped here once more.
"""

import errno
import os
import re
import sys
from typing import Any, TextIO, cast

from rnncls.errors import Problem, WriteError, on_one_line

# The beginnings of the messages that stand out on a terminal, and the colours of terminals.
_LABEL = re.compile(
    r"^rnncls: (?:(?P<error>(?:internal )?error)|warning)(?:\[\w+\])?", re.MULTILINE
)
_BOLD_RED = "\x1b[1;31m"
_YELLOW = "\x1b[33m"
_PLAIN = "\x1b[0m"

# What tqdm writes, as a text of its own, to go up to the line of another bar.
_LINES_UP = re.compile(r"(?:\x1b\[A)+")
_OTHER_THAN_ASCII = re.compile(r"[^\n\t -~]")


def shows_colour(stream: TextIO) -> bool:
    """Return whether text may be coloured there: on a terminal that can, unless NO_COLOR is set."""
    wanted = not os.environ.get("NO_COLOR")
    capable = os.environ.get("TERM", "dumb") != "dumb"
    return wanted and capable and stream.isatty()


def colour_labels(text: str) -> str:
    """Return a message with `rnncls: error` in bold red and `rnncls: warning` in yellow."""

    def coloured(label: re.Match[str]) -> str:
        colour = _BOLD_RED if label["error"] else _YELLOW
        return f"{colour}{label[0]}{_PLAIN}"

    return _LABEL.sub(coloured, text)


def without_controls(text: str) -> str:
    """Escape whatever steers a terminal, but for line breaks and tabs."""
    # Most texts end here, and most others have few such characters or none.
    if text.isprintable() or text == "\n":
        return text
    return _OTHER_THAN_ASCII.sub(lambda found: on_one_line(found[0]), text)


def _of_bar(text: str) -> str:
    """Escape what steers a terminal in a text for stderr, where tqdm moves the cursor."""
    if _LINES_UP.fullmatch(text):
        return text
    # A bar begins with a carriage return, to write over itself. So does what clears a line, which
    # ends with one, too. Elsewhere it would hide what stands before it.
    inner = text.strip("\r")
    start = "\r" if text.startswith("\r") else ""
    end = "\r" if inner and text.endswith("\r") else ""
    return f"{start}{without_controls(inner)}{end}"


def say(line: object) -> None:
    """Print a line on stderr. It stays one line, whatever the text in it comes from."""
    print(on_one_line(line), file=sys.stderr)


class LenientStream:
    """A text stream that falls silent when nobody can read it any more.

    stderr falls silent after any error. stdout carries the result: there, only a reader that left
    (EPIPE) is ignored, and any other error is raised as WriteError.

    No control characters of a text reach a terminal, nor stderr at all, which people read. In a
    file or a pipe, stdout is whole: it carries data.

    On a terminal, the errors and warnings that are written to stderr are coloured.
    """

    def __init__(self, stream: TextIO, is_result: bool) -> None:
        self.stream = stream
        self.is_result = is_result
        self.in_colour = not is_result and shows_colour(stream)
        self.is_whole = is_result and not stream.isatty()  # whether nothing is escaped
        self.is_silent = False  # whether nobody can read it any more
        self.is_muted = False  # whether nothing is written, because another process speaks

    def write(self, text: str) -> int:
        """Write as a text stream does. Raises: WriteError."""
        if self.is_muted:
            return len(text)
        shown = text
        if not self.is_whole:
            shown = without_controls(text) if self.is_result else _of_bar(text)
        if self.in_colour:
            shown = colour_labels(shown)

        try:
            self.stream.write(shown)
        except OSError as error:
            self._fall_silent(error)
        # Also after an error, so that no caller tries the rest again.
        return len(text)

    def flush(self) -> None:
        """Flush as a text stream does. Raises: WriteError."""
        try:
            self.stream.flush()
        except OSError as error:
            self._fall_silent(error)

    def _fall_silent(self, error: OSError) -> None:
        # The descriptor itself is redirected, so that what is still buffered goes nowhere, too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        self.is_silent = True

        if self.is_result and error.errno != errno.EPIPE:
            remedy = "another place for the results"
            raise WriteError(
                Problem(f"cannot write: {error.strerror}", "stdout", remedy=remedy, id="R9")
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def reader_has_left(stream: Any) -> bool:
    """Return whether what is written to a stream goes nowhere, so that there is no point in it."""
    return isinstance(stream, LenientStream) and stream.is_silent


def fall_silent() -> None:
    """Write nothing to stdout and stderr any more but errors: another process speaks for all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, LenientStream):
            stream.is_muted = True


def say_nevertheless(text: str) -> None:
    """Print lines on stderr, also in a process that has fallen silent."""
    stream: Any = sys.stderr
    was_muted = getattr(stream, "is_muted", False)
    if was_muted:
        stream.is_muted = False
    print(text, file=stream)
    if was_muted:
        stream.is_muted = True


def make_streams_lenient() -> None:
    """Wrap sys.stdout and sys.stderr; what their encoding lacks becomes a backslash escape."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            stream = _nowhere(descriptor)
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, cast(TextIO, LenientStream(stream, name == "stdout")))


def _nowhere(descriptor: int) -> TextIO:
    """Open /dev/null under a closed descriptor, whose number the next file would get otherwise."""
    opened = os.open(os.devnull, os.O_WRONLY)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
    return open(descriptor, "w", encoding="utf-8", closefd=False)
