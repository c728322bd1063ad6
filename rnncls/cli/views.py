"""Which view `rnncls explain` is asked for, and whether its options go together."""

from dataclasses import dataclass
from pathlib import Path

from rnncls.cli.sequences import require_sequence
from rnncls.errors import ConfigError, Problem

# How the names of files end that are written.
_ENDINGS = {
    "--graph": (".svg", ".dot", ".mmd"),
    "--states": (".png",),
    "--output": (".png",),
    "--html": (".html", ".htm"),
}


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    checkpoint: Path | None
    sequence: str | None
    graph: Path | None
    rolled: bool
    padding: bool
    gradients: bool
    states: Path | None
    html: Path | None
    label: str | None
    output: Path | None
    demo: bool

    def written(self) -> dict[str, Path]:
        """Return the files that are to be written, by their options."""
        files = {
            "--graph": self.graph,
            "--states": self.states,
            "--output": self.output,
            "--html": self.html,
        }
        return {option: path for option, path in files.items() if path is not None}


def view_of(wanted: Wanted) -> str:
    """Return the option that says what to show; "" for the steps of a sequence.

    Raises: ConfigError unless exactly one thing is to be shown, and there is a run to show it of.
    """
    views = {
        "--demo": wanted.demo,
        "--padding": wanted.padding,
        "--gradients": wanted.gradients,
        "--states": wanted.states is not None,
        "--graph": wanted.graph is not None,
    }
    chosen = [option for option, is_on in views.items() if is_on]
    if len(chosen) > 1:
        raise misfit(" and ".join(chosen), "one of them at a time")
    view = chosen[0] if chosen else ""

    if wanted.demo and wanted.checkpoint is not None:
        raise misfit("--demo has a network of its own", "rnncls explain --demo")
    if wanted.checkpoint is None and not wanted.demo:
        raise misfit("no run to look into", "rnncls explain RUN, or --demo")

    if wanted.sequence is not None and view not in ("", "--graph"):
        raise misfit(f"{view} takes no sequence", f"rnncls explain RUN {view}")
    if wanted.sequence is not None:
        require_sequence(wanted.sequence)
    if wanted.sequence is None and not view:
        remedy = 'a sequence, such as "3 7 1 9", or --padding, --gradients, --states, --graph'
        raise misfit("nothing to show", remedy)
    return view


def require_options(view: str, wanted: Wanted) -> None:
    """Raise ConfigError for an option that says something about another view."""
    if wanted.rolled and view != "--graph":
        raise misfit("--rolled is about --graph", "--graph FILE.svg --rolled")
    if wanted.output is not None and view not in ("--padding", "--gradients"):
        raise misfit("--output is about --padding and --gradients", "one of them")
    if view and (wanted.html is not None or wanted.label is not None):
        raise misfit("--html and --label are about the steps of a sequence", "a sequence alone")

    # By its name, no file of a run can be meant.
    for option, path in wanted.written().items():
        endings = _ENDINGS[option]
        if path.suffix.lower() not in endings:
            what = f"{option} {path}: a name of an unknown kind"
            raise misfit(what, f"a name that ends in {' or '.join(endings)}")


def misfit(what: str, remedy: str) -> ConfigError:
    """Return what to raise for options that do not go together."""
    return ConfigError(Problem(what, remedy=remedy, id="C17"))
