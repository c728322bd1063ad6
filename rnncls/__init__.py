"""Train, evaluate and monitor recurrent classifiers of variable-length sequences.

    import rnncls

    config = rnncls.load_config("configs/sum_mod_10.yaml", ["train.max_steps=1000"])
    state = rnncls.fit(config, "runs/mine")
    report = rnncls.evaluate(state.model, config, lengths=[5, 50])

    predictor = rnncls.load("runs/mine")
    predictor.predict(["3 7 1 9", [5, 5]])

The names are imported on first use, so that `import rnncls` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rnncls.system.machine import require_posix
from rnncls.version import __version__

if TYPE_CHECKING:
    from rnncls.config import load_config
    from rnncls.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        Interrupted,
        MachineError,
        NonFiniteError,
        OutOfMemory,
        RnnclsError,
        WriteError,
    )
    from rnncls.evaluation.evaluate import evaluate
    from rnncls.predict.predictor import Prediction, Predictor, load, load_model
    from rnncls.training.fit import fit

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "MachineError",
    "NonFiniteError",
    "OutOfMemory",
    "Prediction",
    "Predictor",
    "RnnclsError",
    "WriteError",
    "__version__",
    "evaluate",
    "fit",
    "load",
    "load_config",
    "load_model",
]

# The module that each public name is in. Most of them import torch, which takes seconds.
_MODULES = {
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "Interrupted": "errors",
    "MachineError": "errors",
    "NonFiniteError": "errors",
    "OutOfMemory": "errors",
    "Prediction": "predict.predictor",
    "Predictor": "predict.predictor",
    "RnnclsError": "errors",
    "WriteError": "errors",
    "evaluate": "evaluation.evaluate",
    "fit": "training.fit",
    "load": "predict.predictor",
    "load_config": "config",
    "load_model": "predict.predictor",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562).

    Raises: AttributeError for other names. MachineError on Windows.
    """
    # From a fixed table: a name that somebody else chose must not become an import.
    if name in _MODULES:
        require_posix()
        module = import_module(f"rnncls.{_MODULES[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'rnncls' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names; what else is here, such as the packages, is no part of them."""
    special = [name for name in globals() if name.startswith("__")]
    return sorted({*__all__, *special})
