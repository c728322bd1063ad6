"""The machine code of the program of each cell, compiled or read from where it is kept."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from rnncls.compiled import batches, gates, kernels
from rnncls.compiled.batches import BatchSize
from rnncls.compiled.loading import load
from rnncls.steps.compiled import (
    dropout,
    head,
    inputs,
    memory,
    ngrams,
    noise,
    optimizer,
    parameters,
    program,
)
from rnncls.steps.compiled.description import CELLS
from rnncls.steps.compiled.memory import (
    ADAM,
    NUM_SUMS,
    Extras,
    FlatArrays,
    Hyperparameters,
    Sizes,
    StepInputs,
    make_buffers,
)
from rnncls.steps.optim import CLIP_EPSILON


class Functions(NamedTuple):
    """The entry points of the program of a cell, as machine code."""

    train_steps: Callable[..., Any]
    share_of_step: Callable[..., Any]
    finish_step: Callable[..., Any]


# The members of a sweep are threads of one process: the first of them compiles, the others wait.
# By the cell, and whether the model has Extras.
_loaded: dict[tuple[str, bool], Functions] = {}
_loading = threading.Lock()


def load_program(cell: str = "rnn", in_shares: bool = False, has_extras: bool = False) -> Functions:
    """Return the compiled functions of a cell, from the folder where they are kept if they are.

    Otherwise they are compiled, which takes seconds, and kept. If there is no folder, they
    are compiled for this process alone. `in_shares`: whether several processes or threads share a
    step, which then has two halves. `has_extras`: whether the model has some.
    """
    in_shares = in_shares or torch.get_num_threads() > 1
    key = (cell, has_extras)
    with _loading:
        if key not in _loaded:
            # All sources, because a function is compiled together with those that it calls. So a
            # change of one cell leaves the code of the others as it is.
            shared = (kernels, gates, batches, memory, parameters, inputs, ngrams, dropout)
            modules = (*shared, noise, head, optimizer, program, CELLS[cell])
            _loaded[key] = load(
                modules,
                make=lambda compiled: _functions(cell, compiled),
                warm_up=lambda functions: _warm_up(cell, functions, in_shares, has_extras),
                what="the training step",
                seconds=35 if has_extras else 20,
            )
        return _loaded[key]


def _functions(cell: str, compiled: Callable[..., Any]) -> Functions:
    """Return the functions, which Numba compiles, or reads, when first called."""
    train_steps, share_of_step = program.entry_points(CELLS[cell])
    return Functions(
        train_steps=compiled(train_steps),
        share_of_step=compiled(share_of_step),
        finish_step=compiled(program.finish_step),
    )


def _warm_up(cell: str, functions: Functions, in_shares: bool, has_extras: bool) -> None:
    """Call the functions that a run needs, so that they are compiled now.

    The types of the arguments are those of a run, since Numba compiles for types.
    """
    # The values do not matter, since no step is taken. They are small to keep the buffers small.
    num_gates = CELLS[cell].GATES

    sizes = Sizes(
        tokens=1,
        width=1,
        hidden=1,
        layers=1,
        directions=1,
        classes=1,
        gates=num_gates,
        kept=CELLS[cell].KEPT,
        bias_apart=CELLS[cell].BIAS_APART,
        bias=True,
        relu=False,
        dropout=0.0,
        noise=0.0,
        smoothing=0.0,
        optimizer=ADAM,
        last=True,
        mean=False,
        largest=False,
        parts=1,
        by_table=True,
        embeddings=1,
        skip=0,
    )
    extras = Extras(
        table=0,
        ngrams=0,
        num_ngrams=0,
        longest_ngram=0,
        has_unknown=False,
        positions=0,
        token_dropout=0.0,
        ngram_dropout=0.0,
        embedding_dropout=0.0,
        head_dropout=0.0,
    )
    hyper = Hyperparameters(
        max_norm=1.0,
        clip_epsilon=CLIP_EPSILON,
        weight_decay=0.0,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        momentum=0.0,
    )
    touched = np.zeros((1, 0), np.uint8)
    one_row = BatchSize(sequences=1, time_steps=1, rows=1)
    buffers = make_buffers(sizes, extras if has_extras else None, one_row, touched[0])

    # This model has 1 parameter in the embedding, 4 for each gate of its layer and 2 in the head.
    floats = np.zeros(3 + 4 * num_gates, np.float32)
    flat = FlatArrays(weights=floats, gradients=floats, first=floats, second=floats)

    # No steps: one edge, no learning rates.
    integers = np.zeros(1, np.int64)
    step_inputs = StepInputs(
        tokens=np.zeros(1, np.int32),
        starts=integers,
        lengths=integers,
        labels=integers,
        edges=integers,
        rates=np.zeros(0),
        keys=np.zeros((0, 0), np.uint64),
        input_keys=np.zeros((0, 0), np.uint64),
        noise_keys=np.zeros((0, 0), np.uint64),
    )
    sums = np.zeros(NUM_SUMS)
    if not in_shares:
        functions.train_steps(
            sizes=sizes,
            hyper=hyper,
            flat=flat,
            step_inputs=step_inputs,
            class_weights=floats,
            updates=0,
            sums=sums,
            buffers=buffers,
        )
    else:
        # A step without sequences, and then a gradient that is not finite, so that nothing is done.
        no_keys = np.zeros((1, 0), np.uint64)
        step_inputs = step_inputs._replace(
            edges=np.zeros(2, np.int64), keys=no_keys, input_keys=no_keys, noise_keys=no_keys
        )
        functions.share_of_step(
            sizes=sizes,
            weights=floats,
            out=floats.copy(),
            step_inputs=step_inputs,
            step=0,
            share=0,
            shares=1,
            class_weights=floats,
            buffers=buffers,
        )
        others = np.full((1, len(floats)), np.nan, np.float32)
        functions.finish_step(
            sizes=sizes,
            hyper=hyper,
            more=buffers.more,
            flat=flat,
            others=others,
            touched=np.zeros((2, 0), np.uint8),
            rate=0.0,
            updates=1,
            loss=0.0,
            correct=0,
            sequences=1,
            sums=sums,
        )
