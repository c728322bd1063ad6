"""What the command line understands, and what it says about what it does not."""

import os
import pty
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import PYTHON, SAFETY_S, started

RED = "\x1b[1;31m"
YELLOW = "\x1b[33m"


# --- colour


def on_terminal(*words: str | Path, **environment: str) -> str:
    """Run `rnncls words` with a terminal as stderr, and return what appears there."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", **environment}
    with started([PYTHON, "-m", "rnncls", *words], stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b"".join(_chunks(ours))
        process.wait(timeout=SAFETY_S)
    os.close(ours)
    return shown.decode()


def _chunks(descriptor: int) -> Iterator[bytes]:
    # When the last writer of a terminal is gone, Linux answers with an error and not with b"".
    try:
        while chunk := os.read(descriptor, 4096):
            yield chunk
    except OSError:
        return


def test_errors_are_red_on_a_terminal_only_and_not_against_the_users_wish(tmp_path: Path) -> None:
    words: list[str | Path] = ["config", "check", "--config", tmp_path / "no.yaml"]
    assert on_terminal(*words, NO_COLOR="").startswith(f"{RED}rnncls: error[C1]\x1b[0m: cannot")
    for wish in ({"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}):
        assert on_terminal(*words, **wish).startswith("rnncls: error[C1]: cannot")
