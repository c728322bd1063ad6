"""Make thousands of broken inputs of every kind, and look at what comes of them.

    python -m scripts.fuzz                       8,616 cases (a part of make chaos)
    python -m scripts.fuzz --short               a few of each kind
    python -m scripts.fuzz --only link --first 4711 --cases 1

    config, checkpoint, dataset, command line    mutated; read in this process
    link         links, pipes and odd things in a run or a sweep: nothing outside is changed
    terminal     foreign text in what is shown: no control character reaches the terminal
    read         a call that looks at, opens or reads a file fails
    memory       large files and streams, under a limit of memory

Each must be accepted, or refused with an error of ours. A case is made from its kind and number,
and what fails is printed with the command that runs it again. The exit code is 1 then. A damaged
checkpoint that is accepted counts as a failure too, and so does a kind of input of which all cases
are accepted, or all refused: then nothing was tested. A case that takes longer than SLOW_S is
printed and counted, and is no failure: the machine may have been busy.
"""

from typing import Annotated

import torch
import typer

from scripts.fuzz.running import KINDS, counts_of, run_all
from scripts.processes import end_all, exit_on_signals


def main(
    only: Annotated[str | None, typer.Option(help=", ".join(KINDS))] = None,
    first: Annotated[int, typer.Option(help="Number of the first case of each kind.")] = 0,
    cases: Annotated[int | None, typer.Option(help="Cases of each kind.")] = None,
    short: Annotated[bool, typer.Option("--short", help="A few cases of each kind.")] = False,
) -> None:
    """Run cases of each kind; exit code 1 if any of them failed."""
    if only is not None and only not in KINDS:
        raise typer.BadParameter(f"no kind {only}; there are {', '.join(KINDS)}")
    torch.set_num_threads(1)
    exit_on_signals()
    counts = counts_of(short)
    if cases is not None:
        counts = dict.fromkeys(counts, cases)
    if only is not None:
        counts = {only: counts[only]}
    try:
        failures = run_all(counts, first)
    finally:
        end_all()
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
