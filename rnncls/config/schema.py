"""What can be configured: every key with its default, its range and one line that says what it does.

Defaults live here and nowhere else. A `Config` is frozen: nothing edits it after loading, and what can be
derived (`data.num_classes`) is derived.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_PARAMETERS = 2**32  # 16 GiB of float32 weights, before gradients and optimizer state
MAX_BATCH_TOKENS = 2**30  # 8 GiB of int64 ids

DEVICE_PATTERN = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"

Count = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[int, Field(ge=0, le=2**40)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _clash(key: str, what: str, expected: str, found: str, remedy: str = "") -> PydanticCustomError:
    """A problem between keys; `load` puts `key` behind the section the validator belongs to."""
    details = {"key": key, "what": what, "expected": expected, "found": found, "remedy": remedy}
    return PydanticCustomError("clash", "{what}", details)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SumModConfig(Section):
    """Generated sequences of digits, each labelled with the sum of its digits modulo `modulus`."""

    source: Literal["sum_mod"] = "sum_mod"
    """Where sequences come from: sum_mod, or files (then with other keys)."""
    modulus: Annotated[int, Field(ge=2, le=2**20)] = 10
    """N: the label is the sum of the digits mod N, so there are N classes."""
    max_value: Annotated[int, Field(ge=0, le=2**20)] | None = None
    """Largest digit; digits are uniform on 0..max_value. null: modulus - 1."""
    min_length: Count = 1
    """Shortest sequence; lengths are uniform on min_length..max_length."""
    max_length: Count = 5
    """Longest sequence in training and validation."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """How a batch is computed: packed, without padding, or padded with a gather of each sequence's own last state (one
    direction; for CUDA). auto: packed on the CPU and in two directions, padded on CUDA."""

    @property
    def num_classes(self) -> int:
        return self.modulus

    @property
    def num_embeddings(self) -> int:
        """Number of different digits."""
        return (self.modulus - 1 if self.max_value is None else self.max_value) + 1

    @model_validator(mode="after")
    def _check(self) -> "SumModConfig":
        if self.min_length > self.max_length:
            expected = f"at most data.max_length = {self.max_length}"
            raise _clash(
                "min_length", "min_length is above max_length", expected, str(self.min_length)
            )
        return self


class FilesConfig(Section):
    """Labelled sequences from JSONL, CSV or TSV files, each plain or gzipped."""

    source: Literal["files"]
    """Where sequences come from: files, or sum_mod (then with other keys)."""
    train: FilePath
    """Training file. Relative paths are relative to the config file, in an override to the current folder."""
    val: FilePath | None = None
    """Validation file. null: val_fraction of the training file."""
    test: FilePath | None = None
    """Test file. null: test_fraction of the training file."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training file's sequences for validation, chosen by a hash of the sequence."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training file's sequences for the test, chosen by a hash of the sequence."""
    format: Literal["auto", "jsonl", "csv", "tsv"] = "auto"
    """Format of the files; auto goes by .jsonl, .csv or .tsv, with or without .gz."""
    sequence_field: Annotated[str, Field(min_length=1)] = "sequence"
    """Name of the field or column with the sequence."""
    label_field: Annotated[str, Field(min_length=1)] = "label"
    """Name of the field or column with the label."""
    tokens: Literal["ids", "words", "characters"] = "words"
    """What a token is: an integer id >= 0, a word between white space, or a character of the text."""
    unknown: Literal["unk", "error"] = "unk"
    """Tokens that are not in the training data: the token <unk>, or an error."""
    min_count: Count = 1
    """Tokens that are rarer in the training data become <unk> (with `unknown: unk`)."""
    max_length: Count | None = None
    """Longest sequence, in tokens; longer ones are handled by `truncate`. null: no limit."""
    truncate: Literal["head", "tail", "error"] = "head"
    """What stays of a longer sequence: its first max_length tokens, its last ones, or an error."""
    empty: Literal["error", "drop"] = "error"
    """Sequences without a token: an error, or left out and counted."""
    batching: Literal["shuffle", "bucket"] = "shuffle"
    """shuffle: random batches. bucket: random batches of similar lengths, with less padding."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """How a batch is computed: packed, without padding, or padded with a gather of each sequence's own last state (one
    direction; for CUDA). auto: packed on the CPU and in two directions, padded on CUDA."""

    @model_validator(mode="after")
    def _check(self) -> "FilesConfig":
        taken = (self.val_fraction if self.val is None else 0) + (
            self.test_fraction if self.test is None else 0
        )
        if taken >= 1:
            expected = "val_fraction + test_fraction below 1"
            raise _clash("val_fraction", "no training data is left", expected, f"{taken:g}")
        if self.min_count > 1 and self.unknown == "error":
            what = "rare tokens would be unknown, and unknown tokens an error"
            raise _clash(
                "min_count",
                what,
                "min_count: 1, or unknown: unk",
                f"{self.min_count}",
                "data.unknown=unk",
            )
        return self


DataConfig = Annotated[SumModConfig | FilesConfig, Field(discriminator="source")]


class ModelConfig(Section):
    """Embedding -> nn.RNN, nn.LSTM or nn.GRU -> linear head on the last layer's final hidden state."""

    cell: Literal["rnn", "lstm", "gru"] = "rnn"
    """The recurrence: torch.nn's RNN, LSTM or GRU."""

    embedding_dim: Count = 10
    """Width of the token embedding, the recurrence's input_size."""
    hidden_size: Count = 256
    """Width of the hidden state."""
    num_layers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Stacked recurrent layers."""
    nonlinearity: Literal["tanh", "relu"] = "relu"
    """Activation function of `cell: rnn`; lstm and gru have their own."""
    bias: bool = True
    """Whether the recurrence has the biases b_ih and b_hh."""
    dropout: BelowOne = 0.0
    """Dropout probability between recurrent layers; needs num_layers >= 2."""
    bidirectional: bool = False
    """Run a second recurrence from the last token to the first and use both final states."""
    recurrent_init: Literal["default", "orthogonal", "identity"] = "orthogonal"
    """Initial W_hh, of each gate: PyTorch's uniform default, random orthogonal, or the identity (then b_hh = 0)."""
    init_gain: Positive = 0.3
    """Factor on the initial embedding, W_ih and W_hh; 1 leaves them as they are."""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.dropout > 0 and self.num_layers == 1:
            what = "dropout acts between layers, and model.num_layers is 1"
            expected = "dropout: 0, or num_layers of at least 2"
            found = f"dropout: {self.dropout}, num_layers: 1"
            raise _clash("dropout", what, expected, found, "model.dropout=0 or model.num_layers=2")
        return self


class OptimizerConfig(Section):
    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """torch.optim's Adam, AdamW (decoupled weight decay) or SGD."""
    lr: Positive = 2e-3
    """Peak learning rate, reached after the warm-up."""
    weight_decay: NotNegative = 0.3
    """Weight decay on all parameters: decoupled for adamw, an L2 penalty for adam and sgd."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of Adam's and AdamW's running averages."""
    eps: Positive = 1e-8
    """Term added to Adam's and AdamW's denominator."""
    momentum: BelowOne = 0.0
    """Momentum of sgd; must be 0 for the others."""

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        if self.momentum > 0 and self.name != "sgd":
            what = f"momentum is a setting of sgd, and optimizer.name is {self.name}"
            raise _clash(
                "momentum", what, "momentum: 0, or name: sgd", f"{self.momentum}", "optimizer.betas"
            )
        return self


class ScheduleConfig(Section):
    """The learning rate as a function of the step: linear warm-up from 0 to lr, then `name`."""

    name: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up: stay at lr, or fall to min_lr at the last step."""
    warmup_steps: Steps = 500
    """Steps of linear warm-up."""
    min_lr: NotNegative = 1e-4
    """Learning rate at the end of a linear or cosine schedule."""


class TrainConfig(Section):
    max_steps: Steps = 5000
    """Optimizer steps of the whole run."""
    max_epochs: Count | None = None
    """Epochs of the whole run, if they end before max_steps; for `source: files`. null: max_steps alone decides."""
    batch_size: Count = 128
    """Sequences per step."""
    max_grad_norm: Positive | None = 1.0
    """Gradients with a larger 2-norm are scaled down to it. null: no clipping, the norm is still logged."""
    log_every: Count = 100
    """Steps between two log lines; each averages over the steps since the last."""
    eval_every: Count = 500
    """Steps between two evaluations on the validation stream; also after the last step."""
    eval_samples: Count = 2000
    """Validation sequences per evaluation, always the same ones; of a file at most as many as there are."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints; also after the last step and at each best evaluation."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many of the newest checkpoints stay on disk, beside the best one."""
    histogram_every: Count | None = None
    """Steps between two TensorBoard histograms of weights and gradients. null: none."""
    stop_at_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Stop after an evaluation with at least this validation accuracy."""
    patience: Count | None = None
    """Stop after this many evaluations in a row without a better `best_metric`."""
    max_skipped_steps: Annotated[int, Field(ge=0, le=2**20)] = 0
    """How many steps in a row may be skipped because loss or gradient is not finite; one more ends the run."""
    deterministic: bool = False
    """On CUDA: the same bits every time, slower. The CPU always computes so."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class weighs in the loss by the inverse of its frequency in training; for `source: files`."""
    best_metric: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    """Which validation value makes an evaluation the best."""
    engine: Literal["auto", "eager", "compiled", "captured"] = "auto"
    """How steps are taken: one by one in PyTorch (eager), many in one compiled function (CPU; needs numba), or as CUDA
    graphs (captured). auto: the fastest that can be. Equal up to rounding."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of matrix products: float32; tf32, with 10 bits of mantissa, on CUDA; bfloat16, with 7, weights in float32."""
    profile: bool = False
    """Write a profiler trace of 20 steps into the run directory."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = 1
    """CPU threads of torch. One is fastest for small models and gives the same bits on any number of
    cores. null: torch's choice."""


class Config(Section):
    """Everything a run depends on."""

    data: DataConfig = Field(default_factory=SumModConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides initial weights, batches and dropout."""
    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = "auto"
    """Where to compute: auto (CUDA if there is one), cpu, cuda or cuda:INDEX."""

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.schedule.name != "constant" and self.schedule.min_lr > self.optimizer.lr:
            expected = f"at most optimizer.lr = {self.optimizer.lr}"
            found = str(self.schedule.min_lr)
            raise _clash(
                "schedule.min_lr", "the schedule would end above where it starts", expected, found
            )
        if self.data.layout == "padded" and self.model.bidirectional:
            what = "in two directions padding would come first"
            expected, remedy = "data.layout: auto or packed", "data.layout=auto"
            raise _clash("data.layout", what, expected, "padded, model.bidirectional: true", remedy)
        if isinstance(self.data, SumModConfig):
            self._check_generated(self.data)
        check_size(self, *sizes(self))
        return self

    def _check_generated(self, data: SumModConfig) -> None:
        for key, value, neutral in (
            ("max_epochs", self.train.max_epochs, None),
            ("class_weights", self.train.class_weights, "none"),
        ):
            if value != neutral:
                what = f"{key} needs a training file, and data.source is sum_mod"
                raise _clash(
                    f"train.{key}",
                    what,
                    "data.source: files",
                    f"{value}",
                    f"train.{key}={neutral or 'null'}",
                )
        if (tokens := self.train.batch_size * data.max_length) > MAX_BATCH_TOKENS:
            what = f"a batch would need {8 * tokens:,} bytes of tokens"
            expected = f"train.batch_size * data.max_length of at most {MAX_BATCH_TOKENS:,}"
            raise _clash(
                "train.batch_size",
                what,
                expected,
                f"{tokens:,}",
                "smaller batches or shorter sequences",
            )


def sizes(config: Config) -> tuple[int, int]:
    """(number of different tokens, number of classes); of files, which say it themselves, the least there can be."""
    data = config.data
    return (data.num_embeddings, data.num_classes) if isinstance(data, SumModConfig) else (1, 1)


def check_size(config: Config, num_embeddings: int, num_classes: int) -> None:
    """Raises PydanticCustomError, which is a ValueError, for a model larger than any machine."""
    if (size := num_parameters(config, num_embeddings, num_classes)) > MAX_PARAMETERS:
        what = f"the model would need {4 * size:,} bytes of weights"
        expected = f"at most {MAX_PARAMETERS:,} parameters"
        raise _clash("model.hidden_size", what, expected, f"{size:,} parameters", "smaller sizes")


def num_parameters(config: Config, num_embeddings: int, num_classes: int) -> int:
    """Number of trainable numbers, by arithmetic alone: nothing is allocated."""
    model = config.model
    directions = 2 if model.bidirectional else 1
    gates = {"rnn": 1, "lstm": 4, "gru": 3}[model.cell]
    count = num_embeddings * model.embedding_dim
    for layer in range(model.num_layers):
        width = model.embedding_dim if layer == 0 else model.hidden_size * directions
        biases = 2 if model.bias else 0
        count += directions * gates * model.hidden_size * (width + model.hidden_size + biases)
    return count + (model.hidden_size * directions + 1) * num_classes


def flatten(config: Config) -> dict[str, Any]:
    """`{"data.modulus": 10, ...}`: every key with its value, dotted."""
    flat: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat
