"""Everything that can go wrong for a user, and the exit code that each error ends with.

    RnnclsError             1   a bug in rnncls, unless a subclass says otherwise
      ConfigError           2   command line or configuration
      DataError             3   data
      CheckpointError       4   a checkpoint is missing, damaged, foreign or does not fit
      MachineError          5   device, permission, lock
      WriteError            6   a file cannot be written
      NonFiniteError        7   NaN or infinity in the loss, the gradient or the weights
      OutOfMemory           8   main memory or the GPU's
      PeerError             9   another process of the run is gone
      Interrupted       129-143   stopped by a signal after a committed checkpoint
      Elsewhere                 as another process of the run, which says why

Each error carries one or more `Problem`s: what is wrong and where, what was expected, what was
found, what to try. The command line prints them and nothing else; `str(error)` is the same text.
"""

import errno
import os
from dataclasses import KW_ONLY, dataclass

# A file of data may have a problem in each of its lines.
MOST_PROBLEMS_SHOWN = 20

# Of one line of a message. What comes from a file may be very long.
MOST_CHARACTERS = 1000


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the words that the user reads."""

    what: str
    where: str = ""  # file:line:column and dotted key, as far as known
    _: KW_ONLY
    expected: str = ""
    found: str = ""
    remedy: str = ""
    id: str = ""  # the kind of fault; stable, never reused

    def render(self) -> str:
        """Return the problem as one block of lines, safe to print on a terminal.

        Each field is one line, whatever it quotes: a line break in a file's name or in a value
        could otherwise forge a field, or another error.
        """
        label = f"error[{self.id}]" if self.id else "error"
        place = f" ({self.where})" if self.where else ""
        lines = [f"rnncls: {label}: {self.what}{place}"]

        # Only what is known is shown.
        details = {"expected:": self.expected, "found:": self.found, "try:": self.remedy}
        for name, text in details.items():
            if text:
                lines.append(f"  {name:<9} {text}")

        # Shortened first, so that no escape is cut in the middle.
        return "\n".join(on_one_line(_shortened(line)) for line in lines)


def _shortened(line: str) -> str:
    return line if len(line) <= MOST_CHARACTERS else line[:MOST_CHARACTERS] + " ..."


def on_one_line(foreign: object) -> str:
    """Return what comes from anywhere as it may be shown: one line, without control characters.

    Everything that a file, a name or a person's input brings goes through here before it is shown,
    because a line break in it could forge a row, and a control character steers a terminal.
    """
    text = str(foreign)
    # Nearly every text is printable as it is.
    if text.isprintable():
        return text
    # ascii() escapes the character and puts quotes around it, which are cut off.
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


class RnnclsError(Exception):
    """Base class of all errors that rnncls raises on purpose.

    `exit_code` is what the process ends with.
    """

    exit_code: int = 1

    def __init__(self, *problems: Problem) -> None:
        # As `args` they make another process's copy of the error whole, too.
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        # A traceback, a notebook and a log show where, expected and found as the terminal does.
        return self.render()

    def render(self) -> str:
        """Return the block for stderr: the first problems in full, the others counted."""
        blocks = [problem.render() for problem in self.problems[:MOST_PROBLEMS_SHOWN]]

        left_out = len(self.problems) - MOST_PROBLEMS_SHOWN
        if left_out > 0:
            blocks.append(f"rnncls: ... and {left_out} more problems")

        return "\n".join(blocks)


class ConfigError(RnnclsError):
    """The command line or the config is wrong."""

    exit_code = 2


class DataError(RnnclsError):
    """The data is missing or malformed, or does not fit the model."""

    exit_code = 3


class CheckpointError(RnnclsError):
    """A checkpoint is missing, foreign or does not fit."""

    exit_code = 4


class Damaged(CheckpointError):
    """The file does not verify: it was truncated or changed, or never was a checkpoint."""


class MachineError(RnnclsError):
    """The machine refuses: no such device, no permission, a lock, a limit."""

    exit_code = 5


class WriteError(RnnclsError):
    """A file cannot be written."""

    exit_code = 6


class NonFiniteError(RnnclsError):
    """The loss, the gradient or the weights are NaN or infinite."""

    exit_code = 7


class OutOfMemory(RnnclsError):
    """Main memory or the GPU's memory ran out."""

    exit_code = 8


class PeerError(RnnclsError):
    """Another process that trains or evaluates with this one is gone, or does not answer."""

    exit_code = 9


class Interrupted(RnnclsError):
    """A signal stopped the run; the exit code is 128 + the number of the signal.

    It is no fault, so its message has neither the word error nor an id.
    """

    def __init__(self, exit_code: int, problem: Problem) -> None:
        super().__init__(problem)
        self.args = (exit_code, problem)

        # Shells report a process that a signal has killed with the same number.
        self.exit_code = exit_code

    def render(self) -> str:
        """Return the line for stderr: what was saved, and the command that continues."""
        (problem,) = self.problems
        return on_one_line(f"{problem.what}; resume with: {problem.remedy}")


class Elsewhere(RnnclsError):
    """The run ends because of another of its processes, which says why: this one says nothing."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.args = (exit_code,)
        self.exit_code = exit_code


def as_out_of_memory(error: Exception, found: str = "") -> OutOfMemory | None:
    """Return the OutOfMemory to raise instead of an exception of Python or torch.

    Returns None if the exception is about something else. `found` goes into the message.
    """
    # torch's OutOfMemoryError, by its name, because torch is not imported here.
    on_device = type(error).__name__ == "OutOfMemoryError"

    # torch reports a failed allocation on the CPU as a plain RuntimeError.
    message = str(error)
    in_main_memory = (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "can't allocate memory" in message
        or "bad_alloc" in message
    )
    if not (on_device or in_main_memory):
        return None

    remedy = (
        "a smaller train.batch_size, data.max_length or model.hidden_size; "
        "no setting is changed automatically"
    )
    if on_device:
        return OutOfMemory(
            Problem("out of memory on the GPU", found=found, remedy=remedy, id="R15")
        )
    return OutOfMemory(Problem("out of memory", found=found, remedy=remedy, id="R16"))


def require_more_files(error: Exception, what: str, where: str = "") -> None:
    """Raise MachineError if `error` says that no more files can be open, whichever came next.

    `what` and `where` are those of the problem.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise limit_reached(what, where) from None


def limit_reached(
    what: str, where: str, remedy: str = "ulimit -n, or a shorter path"
) -> MachineError:
    """Return what to raise for more open files, or a longer name, than the system allows."""
    open_files = os.sysconf("SC_OPEN_MAX")
    name_bytes = os.pathconf("/", "PC_NAME_MAX")
    expected = f"at most {open_files:,} open files, names of {name_bytes} bytes"
    return MachineError(Problem(what, where, expected=expected, remedy=remedy, id="R30"))
