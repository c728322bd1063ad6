"""What the compiled program is told about a run: its sizes, its optimizer, its largest batch."""

import math
from types import ModuleType

import torch

from rnncls.compiled.batches import BatchSize
from rnncls.config import Config, number
from rnncls.data import Block, Task
from rnncls.model.pooling import parts_of
from rnncls.model.rules import LATEST, StepRules
from rnncls.steps.compiled import gru, lstm, rnn
from rnncls.steps.compiled.memory import ADAM, ADAMW, SGD, Hyperparameters, Sizes
from rnncls.steps.optim import CLIP_EPSILON

# A table is faster in batches with at least so many rows for each token of the vocabulary. Where
# sequences are short, one sequence for each is enough.
_ROWS_PER_TOKEN = 8

_OPTIMIZERS = {"adam": ADAM, "adamw": ADAMW, "sgd": SGD}

# By their name in model.cell. Each says what it needs in GATES, KEPT and BIAS_APART.
CELLS: dict[str, ModuleType] = {"rnn": rnn, "gru": gru, "lstm": lstm}


def sizes_of(task: Task, step_rules: StepRules = LATEST) -> Sizes:
    """Return the sizes and functions of the task's model. `step_rules`: those of the run."""
    model = task.config.model
    cell = CELLS[model.cell]
    parts = parts_of(model.pooling)
    num_tokens, num_classes = task.sizes
    directions = 2 if model.bidirectional else 1

    return Sizes(
        tokens=num_tokens,
        width=model.embedding_dim,
        hidden=model.hidden_size,
        layers=model.num_layers,
        directions=directions,
        classes=num_classes,
        gates=cell.GATES,
        kept=cell.KEPT,
        bias_apart=cell.BIAS_APART,
        bias=model.bias,
        relu=model.nonlinearity == "relu",
        dropout=float(model.dropout),
        optimizer=_OPTIMIZERS[task.config.optimizer.name],
        last="last" in parts,
        mean="mean" in parts,
        largest="max" in parts,
        parts=len(parts) * directions,
        by_table=is_by_table(task, step_rules),
    )


def is_by_table(task: Task, step_rules: StepRules = LATEST) -> bool:
    """Return whether the first layer's W_ih x + b is computed once per token of the vocabulary.

    It depends on config and training data, not on the batch: the two ways differ in rounding.
    docs/performance.md has the measurements behind the rule.
    """
    num_tokens, _ = task.sizes
    batch_size = task.config.train.batch_size
    if step_rules < 3:
        return num_tokens <= batch_size
    return num_tokens <= batch_size * max(1, task.mean_length / _ROWS_PER_TOKEN)


def hyperparameters_of(config: Config) -> Hyperparameters:
    """Return the numbers of clipping and of the optimizer."""
    optimizer = config.optimizer
    max_norm = config.train.max_grad_norm
    beta1, beta2 = optimizer.betas
    return Hyperparameters(
        max_norm=math.inf if max_norm is None else max_norm,
        clip_epsilon=CLIP_EPSILON,
        weight_decay=number(optimizer.weight_decay),
        beta1=beta1,
        beta2=beta2,
        eps=optimizer.eps,
        momentum=optimizer.momentum,
    )


def largest_batch(block: Block) -> BatchSize:
    """Return the largest number of sequences, time steps and tokens of any batch of the block."""
    # Rows are tokens: packed batches have no padding. So the largest batch need not be the one with
    # the longest sequence.
    sequences = block.edges.diff()  # (K,)
    token_ends = torch.cat([torch.zeros(1, dtype=torch.int64), block.lengths.cumsum(0)])
    tokens = token_ends[block.edges].diff()  # (K,)
    return BatchSize(
        sequences=int(sequences.max()),
        time_steps=int(block.lengths.max()),
        rows=int(tokens.max()),
    )
