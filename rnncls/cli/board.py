"""rnncls board"""

from pathlib import Path
from typing import Annotated

import typer

from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.system.streams import say

HIGHEST_PORT = 2**16 - 1


def board(
    folder: Annotated[
        Path,
        typer.Argument(metavar="[RUNS]", help="Folder of runs, a run or a sweep.", readable=False),
    ] = Path("runs"),
    host: Annotated[
        str | None, typer.Option(help="Address to listen at (default: this machine alone).")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=HIGHEST_PORT, help="Port to listen at (default: the first free from 6006)."
        ),
    ] = None,
    only_link: Annotated[
        bool, typer.Option("--link", help="Print the link alone, and start nothing.")
    ] = False,
) -> None:
    """Start TensorBoard on the cards that matter, or print the link for one that runs.

    Examples:
        rnncls board
        rnncls board runs/sweep --port 7007
        rnncls board runs --link
    """
    if not folder.is_dir():
        what = "there is no such folder: nothing to show"
        remedy = "rnncls train, which makes runs/...; or the folder that the runs are in"
        raise ConfigError(Problem(what, str(folder), remedy=remedy, id="C17"))

    from rnncls.dashboard.link import DEFAULT_PORT, find_running, link
    from rnncls.sweep.paths import sweeps_below

    # Whoever names a port or a host wants a server of his own there.
    running = find_running(folder) if port is None and host is None else None
    if running is not None:
        say(f"TensorBoard shows {on_one_line(running.folder)} already")
        print(link(running.url, sweeps_below(folder, running.folder)))
        return
    sweeps = sweeps_below(folder, folder)
    if only_link:
        print(on_one_line(link(f"http://{host or 'localhost'}:{port or DEFAULT_PORT}/", sweeps)))
        return

    from rnncls.dashboard.serve import serve

    def begin(url: str) -> None:
        print(link(url, sweeps), flush=True)
        say(f"TensorBoard shows {on_one_line(folder)}; Ctrl-C ends it")

    serve(folder, host, port, begin)
