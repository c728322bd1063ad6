"""Everything that can go wrong for a user, and the exit code it ends with.

    RnnclsError             1   a bug in rnncls, unless a child says otherwise
      ConfigError           2   command line or configuration
      DataError             3   data
      CheckpointError       4   a checkpoint is missing, damaged, foreign or does not fit
      MachineError          5   device, permission, lock
      WriteError            6   a file cannot be written
      NonFiniteError        7   NaN or infinity in the loss, the gradient or the weights
      OutOfMemory           8   main memory or the GPU's
      Interrupted       129-143   stopped by a signal after a committed checkpoint

Each error carries one or more `Problem`s: what is wrong and where, what was expected, what was found,
what to try. The command line prints them and nothing else.
"""

from dataclasses import KW_ONLY, dataclass

MOST_PROBLEMS_SHOWN = 20
MOST_LETTERS = 1000  # of one line of a message


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in the words the user reads."""

    what: str
    where: str = ""  # file:line:column and dotted key, as far as known
    _: KW_ONLY
    expected: str = ""
    found: str = ""
    remedy: str = ""
    id: str = ""  # the kind of fault; stable, never reused

    def render(self) -> str:
        label = f"error[{self.id}]" if self.id else "error"
        lines = [f"rnncls: {label}: {self.what}" + (f" ({self.where})" if self.where else "")]
        details = (("expected:", self.expected), ("found:", self.found), ("try:", self.remedy))
        lines += [f"  {name:<9} {text}" for name, text in details if text]
        return "\n".join(
            printable(line if len(line) <= MOST_LETTERS else line[:MOST_LETTERS] + " ...")
            for line in lines
        )


def printable(text: str) -> str:
    """The text with its control characters escaped: what comes from a file must not steer a terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
        for letter in text
    )


class RnnclsError(Exception):
    """Base of all errors rnncls raises on purpose; `exit_code` is what the process ends with."""

    exit_code: int = 1

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(problem.what for problem in problems))
        self.problems = problems

    def render(self) -> str:
        """The block for stderr: every problem, and a count when they are too many to read."""
        blocks = [problem.render() for problem in self.problems[:MOST_PROBLEMS_SHOWN]]
        if len(self.problems) > MOST_PROBLEMS_SHOWN:
            blocks.append(
                f"rnncls: ... and {len(self.problems) - MOST_PROBLEMS_SHOWN} more problems"
            )
        return "\n".join(blocks)


class ConfigError(RnnclsError):
    exit_code = 2


class DataError(RnnclsError):
    exit_code = 3


class CheckpointError(RnnclsError):
    exit_code = 4


class Damaged(CheckpointError):
    """The file does not verify: truncated, changed, or never a checkpoint."""


class MachineError(RnnclsError):
    exit_code = 5


class WriteError(RnnclsError):
    exit_code = 6


class NonFiniteError(RnnclsError):
    exit_code = 7


class OutOfMemory(RnnclsError):
    exit_code = 8


class Interrupted(RnnclsError):
    """Its exit code is 128 + the number of the signal."""

    def __init__(self, exit_code: int, problem: Problem) -> None:
        super().__init__(problem)
        self.exit_code = exit_code


def as_out_of_memory(error: Exception, found: str = "") -> OutOfMemory | None:
    """The OutOfMemory to raise instead of what Python or torch raised; None when it is about something else."""
    text = str(error)
    on_device = type(error).__name__ == "OutOfMemoryError"  # torch's; not imported here
    if not (
        on_device
        or isinstance(error, MemoryError)
        or "can't allocate memory" in text
        or "bad_alloc" in text
    ):
        return None
    remedy = "a smaller train.batch_size, data.max_length or model.hidden_size; nothing is changed by itself"
    what, id = ("out of memory on the GPU", "R15") if on_device else ("out of memory", "R16")
    return OutOfMemory(Problem(what, found=found, remedy=remedy, id=id))
