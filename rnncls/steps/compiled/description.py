"""What the compiled program is told about a run: its sizes, its optimizer, its largest batch."""

import math
from types import ModuleType

import torch

from rnncls.compiled.batches import BatchSize
from rnncls.config import Config, FilesConfig, most_positions, number
from rnncls.data import Block, Task
from rnncls.model.build import input_dropout_of
from rnncls.model.pooling import parts_of
from rnncls.model.rules import LATEST, StepRules
from rnncls.steps.compiled import gru, lstm, none, rnn
from rnncls.steps.compiled.memory import ADAM, ADAMW, SGD, Extras, Hyperparameters, Sizes
from rnncls.steps.optim import CLIP_EPSILON

# A table is faster in batches with at least so many rows for each token of the vocabulary. Where
# sequences are short, one sequence for each is enough.
_ROWS_PER_TOKEN = 8

_OPTIMIZERS = {"adam": ADAM, "adamw": ADAMW, "sgd": SGD}

# By their name in model.cell. Each says what it needs in GATES, KEPT and BIAS_APART.
CELLS: dict[str, ModuleType] = {"rnn": rnn, "gru": gru, "lstm": lstm, "none": none}


def sizes_of(task: Task, step_rules: StepRules = LATEST) -> Sizes:
    """Return the sizes and functions of the task's model. `step_rules`: those of the run."""
    config = task.config
    model = config.model
    cell = CELLS[model.cell]
    num_tokens, num_classes = task.sizes
    parts = parts_of(model.pooling)
    hidden = model.hidden_size
    layers = model.num_layers
    directions = 2 if model.bidirectional else 1
    dropout = float(model.dropout)
    noise = float(model.state_noise)
    has_skip = model.skip

    # Without recurrent layers the head sees the mean of what they would read, and no states.
    if model.cell == "none":
        parts = ()
        hidden = 0
        layers = 0
        directions = 1
        dropout = 0.0
        noise = 0.0
        has_skip = True

    extras = extras_of(config)
    tables = 0 if extras is None else extras.table + extras.positions
    return Sizes(
        tokens=num_tokens,
        width=model.embedding_dim,
        hidden=hidden,
        layers=layers,
        directions=directions,
        classes=num_classes,
        gates=cell.GATES,
        kept=cell.KEPT,
        bias_apart=cell.BIAS_APART,
        bias=model.bias,
        relu=model.nonlinearity == "relu",
        dropout=dropout,
        noise=noise,
        smoothing=float(config.train.label_smoothing),
        optimizer=_OPTIMIZERS[config.optimizer.name],
        last="last" in parts,
        mean="mean" in parts,
        largest="max" in parts,
        parts=len(parts) * directions,
        by_table=is_by_table(task, step_rules),
        embeddings=num_tokens + tables,
        skip=model.embedding_dim if has_skip else 0,
    )


def extras_of(config: Config) -> Extras | None:
    """Return what the model has beside embeddings of tokens and recurrence; None: nothing."""
    model = config.model
    rates = input_dropout_of(config)
    has_positions = model.positions == "learned"
    reads_more = bool(model.ngrams) or has_positions
    if not reads_more and max(rates) == 0 and not model.skip and model.cell != "none":
        return None

    return Extras(
        table=model.ngram_table if model.ngrams else 0,
        ngrams=sum(2**length for length in model.ngrams),
        num_ngrams=len(model.ngrams),
        longest_ngram=max(model.ngrams, default=0),
        has_unknown=isinstance(config.data, FilesConfig) and config.data.unknown == "unk",
        positions=most_positions(config.data) if has_positions else 0,
        token_dropout=float(rates.tokens),
        ngram_dropout=float(rates.ngrams),
        embedding_dropout=float(rates.embedding),
        head_dropout=float(rates.head),
    )


def is_by_table(task: Task, step_rules: StepRules = LATEST) -> bool:
    """Return whether the first layer's W_ih x + b is computed once per token of the vocabulary.

    It depends on config and training data, not on the batch: the two ways differ in rounding.
    docs/performance.md has the measurements behind the rule.
    """
    # It cannot be where x is more than an embedding, or where the head sees it, too.
    model = task.config.model
    if model.ngrams or model.positions != "none" or model.embedding_dropout > 0:
        return False
    if model.skip or model.cell == "none":
        return False

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
