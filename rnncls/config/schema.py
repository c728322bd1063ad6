"""What can be configured: every key with its default, its range and one line that says what it does.

Defaults live here and nowhere else. A `Config` is frozen: nothing edits it after loading, and what can be
derived (`data.num_classes`) is derived.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_PARAMETERS = 2**32  # 16 GiB of float32 weights, before gradients and optimizer state
MAX_BATCH_TOKENS = 2**30  # 8 GiB of int64 ids

DEVICE_PATTERN = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"

Count = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[int, Field(ge=0, le=2**40)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _clash(key: str, what: str, expected: str, found: str, remedy: str = "") -> PydanticCustomError:
    """A problem between keys; `load` puts `key` behind the section the validator belongs to."""
    details = {"key": key, "what": what, "expected": expected, "found": found, "remedy": remedy}
    return PydanticCustomError("clash", "{what}", details)


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataConfig(Section):
    """Generated sequences of digits, each labelled with the sum of its digits modulo `modulus`."""

    modulus: Annotated[int, Field(ge=2, le=2**20)] = 10
    """N: the label is the sum of the digits mod N, so there are N classes."""
    max_value: Annotated[int, Field(ge=0, le=2**20)] | None = None
    """Largest digit; digits are uniform on 0..max_value. null: modulus - 1."""
    min_length: Count = 1
    """Shortest sequence; lengths are uniform on min_length..max_length."""
    max_length: Count = 5
    """Longest sequence in training and validation."""

    @property
    def num_classes(self) -> int:
        return self.modulus

    @property
    def num_embeddings(self) -> int:
        """Number of different digits."""
        return (self.modulus - 1 if self.max_value is None else self.max_value) + 1

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.min_length > self.max_length:
            expected = f"at most data.max_length = {self.max_length}"
            raise _clash("min_length", "min_length is above max_length", expected, str(self.min_length))
        return self


class ModelConfig(Section):
    """Embedding -> nn.RNN -> linear head on the last layer's final hidden state."""

    embedding_dim: Count = 10
    """Width of the digit embedding, the RNN's input_size."""
    hidden_size: Count = 256
    """Width of the hidden state."""
    num_layers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Stacked recurrent layers."""
    nonlinearity: Literal["tanh", "relu"] = "relu"
    """The recurrence's activation function."""
    bias: bool = True
    """Whether the recurrence has the biases b_ih and b_hh."""
    dropout: BelowOne = 0.0
    """Dropout probability between recurrent layers; needs num_layers >= 2."""
    bidirectional: bool = False
    """Run a second RNN from the last digit to the first and use both final states."""
    recurrent_init: Literal["default", "orthogonal", "identity"] = "orthogonal"
    """Initial W_hh: PyTorch's uniform default, a random orthogonal matrix, or the identity (then b_hh = 0)."""
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
            raise _clash("momentum", what, "momentum: 0, or name: sgd", f"{self.momentum}", "optimizer.betas")
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
    batch_size: Count = 128
    """Sequences per step."""
    max_grad_norm: Positive | None = 1.0
    """Gradients with a larger 2-norm are scaled down to it. null: no clipping, the norm is still logged."""
    log_every: Count = 100
    """Steps between two log lines; each averages over the steps since the last."""
    eval_every: Count = 500
    """Steps between two evaluations on the validation stream; also after the last step."""
    eval_samples: Count = 2000
    """Validation sequences per evaluation, always the same ones."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints; also after the last step and at each best evaluation."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many of the newest checkpoints stay on disk, beside the best one."""
    histogram_every: Count | None = None
    """Steps between two TensorBoard histograms of weights and gradients. null: none."""
    stop_at_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Stop after an evaluation with at least this validation accuracy."""
    patience: Count | None = None
    """Stop after this many evaluations in a row without a higher validation accuracy."""
    max_skipped_steps: Annotated[int, Field(ge=0, le=2**20)] = 0
    """How many steps in a row may be skipped because loss or gradient is not finite; one more ends the run."""
    deterministic: bool = False
    """On CUDA: the same bits every time, slower. The CPU always computes so."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = 1
    """CPU threads of torch. One is fastest for small models and gives the same bits on any number of
    cores. null: torch's choice."""


class Config(Section):
    """Everything a run depends on."""

    data: DataConfig = Field(default_factory=DataConfig)
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
            raise _clash("schedule.min_lr", "the schedule would end above where it starts", expected, found)
        if (tokens := self.train.batch_size * self.data.max_length) > MAX_BATCH_TOKENS:
            what = f"a batch would need {8 * tokens:,} bytes of tokens"
            expected = f"train.batch_size * data.max_length of at most {MAX_BATCH_TOKENS:,}"
            raise _clash("train.batch_size", what, expected, f"{tokens:,}", "smaller batches or shorter sequences")
        if (size := num_parameters(self)) > MAX_PARAMETERS:
            what = f"the model would need {4 * size:,} bytes of weights"
            expected = f"at most {MAX_PARAMETERS:,} parameters"
            raise _clash("model.hidden_size", what, expected, f"{size:,} parameters", "smaller sizes")
        return self


def num_parameters(config: Config) -> int:
    """Number of trainable numbers, by arithmetic alone: nothing is allocated."""
    data, model = config.data, config.model
    directions = 2 if model.bidirectional else 1
    count = data.num_embeddings * model.embedding_dim
    for layer in range(model.num_layers):
        width = model.embedding_dim if layer == 0 else model.hidden_size * directions
        biases = 2 if model.bias else 0
        count += directions * model.hidden_size * (width + model.hidden_size + biases)
    return count + (model.hidden_size * directions + 1) * data.num_classes
