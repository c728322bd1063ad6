"""A process that measures one case: reads it from stdin, and what came out is its last line.

    python -m rnncls.cost.worker

It ends when its stdin does, because then the process that started it has ended, however it did.
"""

import json
import os
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from rnncls.errors import RnnclsError
from rnncls.system.rows import json_text


def main() -> None:
    """Answer the question on stdin. The exit code is 0 if that was possible, else the error's."""
    _be_killed_first()

    question = json.loads(_read_line())
    threading.Thread(target=_end_with_stdin, daemon=True).start()

    result = _result_of(question["what"], question["case"])
    # A line of its own, whatever a library printed before.
    print()
    print(json_text(result), flush=True)
    # At once: there is nothing to clean up, and the thread still reads.
    os._exit(result.get("exit_code", 0))


def _result_of(what: str, raw: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured, or why it was not, with the exit code of that error.

    `what` is "memory" or "time".
    """
    from rnncls.system.refusals import error_of_machine

    try:
        from dataclasses import asdict

        from rnncls.cost.cases import case_of
        from rnncls.cost.measure import measure_memory, measure_time

        measure = measure_memory if what == "memory" else measure_time
        return {"measured": asdict(measure(case_of(raw)))}
    except RnnclsError as error:
        return _failed(error)
    except Exception as error:
        of_machine = error_of_machine(error)
        if of_machine is not None:
            return _failed(of_machine)
        traceback.print_exc()
        return {"reason": f"{type(error).__name__}: {error}", "exit_code": 1}


def _failed(error: RnnclsError) -> dict[str, Any]:
    (problem, *_) = error.problems
    found = f": {problem.found}" if problem.found else ""
    return {"reason": f"{problem.what}{found}", "exit_code": error.exit_code}


def _read_line() -> bytes:
    """Read a line from stdin, and nothing behind it."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            os._exit(1)
        line += part
    return bytes(line)


def _end_with_stdin() -> None:
    # Nothing more is ever written to it.
    os.read(0, 1)
    os._exit(1)


def _be_killed_first() -> None:
    """Have the kernel, when memory runs out, kill this process and not who waits for it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
