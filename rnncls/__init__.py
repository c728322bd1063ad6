"""Train, evaluate and monitor recurrent classifiers of variable-length sequences.

    import rnncls

    config = rnncls.load_config("configs/sum_mod_10.yaml", ["train.max_steps=1000"])
    state = rnncls.fit(config, "runs/mine")
    report = rnncls.evaluate(state.model, config, lengths=[5, 50])
    model = rnncls.load_model("runs/mine")

The functions are imported on first use, so that `import rnncls` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rnncls.system.machine import require_posix
from rnncls.version import __version__

if TYPE_CHECKING:
    from rnncls.config import load_config
    from rnncls.evaluation.evaluate import evaluate
    from rnncls.rundir.checkpoint_files import load_model
    from rnncls.training.fit import fit

__all__ = ["__version__", "evaluate", "fit", "load_config", "load_model"]

# The module that each public function is in. Most of them import torch, which takes seconds.
_MODULES = {
    "evaluate": "evaluation.evaluate",
    "fit": "training.fit",
    "load_config": "config",
    "load_model": "rundir.checkpoint_files",
}


def __getattr__(name: str) -> Any:
    """Import a public function on first use (PEP 562).

    Raises: AttributeError for other names. MachineError on Windows.
    """
    # From a fixed table: a name that somebody else chose must not become an import.
    if name in _MODULES:
        require_posix()
        module = import_module(f"rnncls.{_MODULES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'rnncls' has no attribute {name!r}")
