"""Chooses how many sequences are run through a model: by the compiled program, or by torch.

The choice depends on the model and on how many tokens there are in all, and on nothing that comes
and goes while they are run. So a sequence has the same logits wherever it stands among the others.
Those of the two ways differ by rounding.
"""

import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import torch

from rnncls.data.sequences import BATCH_TOKENS
from rnncls.model.classifier import RNNClassifier
from rnncls.system.streams import say

if TYPE_CHECKING:
    from rnncls.evaluation.compiled import CompiledModel, CompiledStream

# A hidden_size. Beyond it torch's own products are as fast.
WIDEST_EVALUATION = 1024

# The program has a copy of the head. Beyond this, it would take long to make, and much memory.
MOST_CLASSES = 2**14

# A batch with a longer sequence is run by the model itself, which reads it piece by piece: a call
# of the program cannot be interrupted, and needs memory for each token. Where people's own
# sequences are evaluated or predicted, one that is so long is alone in its batch.
LONGEST = BATCH_TOKENS

# To import Numba and to load the program takes half a second. Of each token, the program then saves
# about as many picoseconds as this, and 20 more for each weight of the recurrence. It pays from
# 7,500 sequences of 50 tokens on, for a GRU of 128 units.
PICOSECONDS_OF_TOKEN = 150_000
PICOSECONDS_OF_WEIGHT = 20
PICOSECONDS_OF_START = 500_000_000_000

# Of sequences that are read a few tokens at a time: from so many tokens in all on, the program for
# them is loaded. torch takes nearly twice as long for them.
LEAST_STREAMED = 20_000

# What a function makes of a model.
Made = TypeVar("Made")

# Why the program does not work here, once that was found out; said once in a process.
_failures: list[str] = []
_failing = threading.Lock()


def compiled_model(model: RNNClassifier, num_tokens: int) -> "CompiledModel | None":
    """Return the compiled way of running a model over so many tokens; None: the model itself.

    It is taken where it is faster. A line on stderr says if it would be and does not work here.
    """
    return _compiled(_compiled_model, model) if is_worth_compiling(model, num_tokens) else None


def compiled_stream(model: RNNClassifier, num_tokens: int) -> "CompiledStream | None":
    """Return the compiled way of reading so many tokens, a few at a time; None: the model itself.

    The model is one whose states after some tokens are all that is needed for those behind them.
    """
    if num_tokens < LEAST_STREAMED or not can_be_compiled(model):
        return None
    return _compiled(_compiled_stream, model)


def _compiled_model(model: RNNClassifier) -> "CompiledModel":
    # Imported only where it is chosen: Numba is optional, and slow to import.
    from rnncls.evaluation.compiled import CompiledModel

    return CompiledModel(model)


def _compiled_stream(model: RNNClassifier) -> "CompiledStream":
    from rnncls.evaluation.compiled import CompiledStream

    return CompiledStream(model)


def _compiled(make: Callable[[RNNClassifier], Made], model: RNNClassifier) -> Made | None:
    """Return what is made of a model by Numba, or None, with a line on stderr that says why."""
    if find_spec("numba") is None:
        _say_once("numba is not installed: pip install 'rnncls[fast]'")
        return None

    try:
        return make(model)
    # Numba or LLVM may not fit the machine or the other packages, and then raises anything.
    except Exception as error:
        _say_once(f"numba fails: {error!s:.200}")
        return None


def is_worth_compiling(model: RNNClassifier, num_tokens: int) -> bool:
    """Return whether the compiled program can run a model, and runs so many tokens faster."""
    if not can_be_compiled(model):
        return False
    num_weights = sum(parameter.numel() for parameter in model.rnn.parameters())
    saved = PICOSECONDS_OF_TOKEN + PICOSECONDS_OF_WEIGHT * num_weights
    return num_tokens * saved >= PICOSECONDS_OF_START


def can_be_compiled(model: RNNClassifier) -> bool:
    """Return whether the compiled programs can run a model."""
    # The program would not notice what a subclass, or somebody's hook, changes.
    if type(model) is not RNNClassifier or _has_hooks(model):
        return False
    if not model.is_recurrent:
        return False
    weight = model.head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    is_wide = model.rnn.hidden_size > WIDEST_EVALUATION
    return not is_wide and model.head.out_features <= MOST_CLASSES


def _has_hooks(model: RNNClassifier) -> bool:
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _say_once(reason: str) -> None:
    """Say why torch runs what the program would run faster."""
    with _failing:
        if reason in _failures:
            return
        _failures.append(reason)
    say(f"rnncls: run by torch, which takes longer ({reason})")
