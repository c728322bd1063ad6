"""Write RESULTS.md from sweeps that this script runs, or resumes, below runs/results.

    python -m scripts.reproduce                    everything: two to three hours on two cores
    python -m scripts.reproduce --only ladder,T5   some of it: names, or beginnings of names
    python -m scripts.reproduce --page             runs nothing
    python -m scripts.reproduce --busy             RESULTS.md says that other work ran beside it
    python -m scripts.reproduce --short            the same with two seeds and few steps, as a test;
                                                   all of it is below runs/short

What a sweep came to is kept as docs/results/NAME.json, and RESULTS.md is made of these files alone:
a sweep that is run replaces its own, and the others need not be there. Nothing in RESULTS.md is
typed by hand. Members that have finished are not trained again. A sweep that fails ends the command
and leaves its file and RESULTS.md as they are.
"""

import shlex
import signal
from pathlib import Path
from typing import Annotated

import typer

from rnncls.system.files import write_atomically
from rnncls.system.machine import usable_cores
from rnncls.system.streams import say
from scripts.reproduce.page import page
from scripts.reproduce.results import read_results, result_of, write_result
from scripts.reproduce.running import run
from scripts.reproduce.sweeps import SWEEPS, Sweep, command_of, named, shortened

SHORT_OUT = Path("runs/short")


def main(
    only: Annotated[str, typer.Option(help="Names of sweeps to run, or beginnings of them.")] = "",
    page_only: Annotated[bool, typer.Option("--page", help="Only write RESULTS.md.")] = False,
    short: Annotated[bool, typer.Option("--short", help="Two seeds, few steps.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where the sweeps are kept.")] = None,
    results: Annotated[Path | None, typer.Option(help="Where the JSON files are kept.")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
    is_busy: Annotated[bool, typer.Option("--busy", help="Say that other work runs, too.")] = False,
) -> None:
    """Run the sweeps, keep their results and write RESULTS.md."""
    # SIGTERM raises KeyboardInterrupt as Ctrl-C does; `run_all` then kills what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    if page_only and only:
        raise typer.BadParameter("--page runs no sweep, so --only has nothing to name")
    out = out or (SHORT_OUT if short else Path("runs/results"))
    results = results or (SHORT_OUT / "json" if short else Path("docs/results"))
    output = output or (SHORT_OUT / "RESULTS.md" if short else Path("RESULTS.md"))

    try:
        names = [] if page_only else named(only)
        read_results(results, list(SWEEPS))  # a bad file is found before hours of training
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None

    sweeps = {name: shortened(sweep) for name, sweep in SWEEPS.items()} if short else SWEEPS
    for name in names:
        if exit_code := reproduce(name, sweeps[name], out, results, is_busy):
            say(f"{name}: exit code {exit_code}; its results and {output} are unchanged")
            raise typer.Exit(exit_code)
        write_page(sweeps, results, output)

    missing = write_page(sweeps, results, output)
    if missing:
        say(f"without results, so not in {output}: {', '.join(missing)}")
    print(f"wrote {output}")


def reproduce(name: str, sweep: Sweep, out: Path, results: Path, is_busy: bool) -> int:
    """Run a sweep and keep its result, if it is whole. Return the exit code."""
    command = command_of(name, sweep, out)
    exit_code = run(command, out / name, usable_cores() if sweep.compared else 1, is_busy)
    if exit_code:
        return exit_code

    result = result_of(out / name, shlex.join(command))
    if result is None:
        say(f"{name}: members have failed")
        return 1
    write_result(results, name, result)
    return 0


def write_page(sweeps: dict[str, Sweep], results: Path, output: Path) -> list[str]:
    """Write RESULTS.md from the results that are there, and return which are not."""
    found = read_results(results, list(sweeps))
    write_atomically(output, page(sweeps, found).encode())
    return [name for name in sweeps if name not in found]


if __name__ == "__main__":
    typer.run(main)
