"""The schema of a config: every key with its type, default, range and a short description.

Defaults live here and nowhere else, but for the few that depend on the data source, in
`defaults.py`. A `Config` is frozen: nothing edits it after loading, and what can be derived
(`data.num_classes`) is derived.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rnncls.config.defaults import COUNTED, default_warmup, known_numbers

# Refused before anything is allocated: a typo in a size should not bring the machine down.
MAX_PARAMETERS = 2**32  # 16 GiB of float32 weights, before gradients and optimizer state
MAX_BATCH_TOKENS = 2**30  # 8 GiB of int64 ids

# No machine has a thousand devices.
DEVICE_PATTERN = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"


def _without_nul(path: str) -> str:
    """Return a path that a file can have. Raises: PydanticCustomError."""
    if "\0" in path:
        raise PydanticCustomError("nul", "a NUL in a path")
    return path


def _rising(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return lengths of n-grams, each once and the shortest first. Raises: PydanticCustomError."""
    if len(set(sizes)) < len(sizes):
        raise PydanticCustomError("twice", "a length that is there twice")
    return tuple(sorted(sizes))


# Far above what is useful, and so low that a product of any three of them fits into 64 bits.
Count = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[int, Field(ge=0, le=2**40)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_without_nul)]
FilePaths = FilePath | Annotated[tuple[FilePath, ...], Field(min_length=1, max_length=2**16)]
FieldName = Annotated[str, Field(min_length=1)]
FieldNames = FieldName | Annotated[tuple[FieldName, ...], Field(min_length=1, max_length=64)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
NgramSizes = Annotated[
    tuple[Annotated[int, Field(ge=2, le=16)], ...], Field(max_length=8), AfterValidator(_rising)
]


def _clash(key: str, what: str, expected: str, found: str, remedy: str = "") -> PydanticCustomError:
    """Return the error of a rule between keys.

    `key` is relative to the section that the rule belongs to; `messages` adds the section.
    """
    details = {"key": key, "what": what, "expected": expected, "found": found, "remedy": remedy}
    return PydanticCustomError("clash", "{what}", details)


class Section(BaseModel):
    """Base of all sections: no unknown keys, no conversions, no NaN; docstrings as descriptions."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SumModConfig(Section):
    """Generated sequences of digits, each labelled with the sum of its digits modulo `modulus`."""

    source: Literal["sum_mod"] = "sum_mod"
    """Where sequences come from: sum_mod generates them; files has other keys in this section."""
    modulus: Annotated[int, Field(ge=2, le=2**20)] = 10
    """N, the number of classes: the label of a sequence is the sum of its digits modulo N."""
    max_value: Annotated[int, Field(ge=0, le=2**20)] | None = None
    """Largest digit; digits are drawn uniformly from 0..max_value. null: modulus - 1."""
    min_length: Count = 1
    """Shortest length in digits; lengths are drawn uniformly from min_length..max_length."""
    max_length: Count = 5
    """Longest length in digits, in training and validation."""
    repeat_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training sequences that repeat digits: each next digit is, with probability 3/4,
    0, the last one, or the last but one, the same for the whole sequence. What is evaluated is
    uniform."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """Layout of a batch: packed (no padding) or padded (not for bidirectional models; faster on
    CUDA). auto: padded on CUDA where the model allows it, and on the CPU where steps are eager and
    faster so; else packed. Batches that are run in pieces, or have prefix labels, are packed."""

    @property
    def num_classes(self) -> int:
        return self.modulus

    @property
    def num_embeddings(self) -> int:
        """Number of different digits."""
        return self.modulus if self.max_value is None else self.max_value + 1

    @model_validator(mode="after")
    def _check(self) -> "SumModConfig":
        # The range of each key was checked before; here only what two of them say together.
        if self.min_length > self.max_length:
            expected = f"at most data.max_length = {self.max_length}"
            what = "min_length is above max_length"
            raise _clash("min_length", what, expected, str(self.min_length))
        return self


class FilesConfig(Section):
    """Labelled sequences from files of the user: JSON lines, tables and others, also packed."""

    source: Literal["files"]
    """Where sequences come from: files reads them; sum_mod has other keys in this section."""
    train: FilePaths
    """Training file, a list of files, a folder of them, or a pattern such as part*.csv. A relative
    path is relative to the config file; in an override, to the current folder."""
    val: FilePaths | None = None
    """Validation files, as in `train`. null: a share val_fraction of the training files is held
    out."""
    test: FilePaths | None = None
    """Test files, as in `train`. null: a share test_fraction of the training files is held out."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training files held out for validation, in the way that `split` says."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training files held out for testing, in the way that `split` says."""
    split: Literal["stratified", "hash"] = "stratified"
    """How rows are held out: the same share of each class, of at least 3 different sequences
    (stratified), or by their hash alone, whatever their class (hash)."""
    rare_classes: Literal["keep", "drop", "error"] = "keep"
    """How to treat classes of fewer than 3 different sequences where rows are held out: keep all of
    their rows in training, leave them out, or raise an error."""
    format: Literal["auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "xlsx"] = "auto"
    """Format of the files. auto: by the ending of their names, and by what the file begins with.
    json is one array of objects; parquet, arrow and xlsx need `pip install 'rnncls[files]'`."""
    separator: Literal["auto", ",", ";", "tab", "|"] = "auto"
    """What stands between the columns of a table. auto: tabs in TSV; in CSV what separates the
    fields in the header row, or else the columns of the first rows."""
    quoting: Literal["auto", "standard", "none"] = "auto"
    """Quotes in a table: around cells, where a doubled one is a quote (standard), or characters
    like any other (none). auto: by the first rows."""
    header: bool = True
    """Whether the first row of a table names the columns. false: they are called 1, 2, 3 and so
    on."""
    encoding: Literal["utf-8", "utf-16", "cp1252", "latin-1"] = "utf-8"
    """Encoding of text. A byte order mark of UTF-8 or UTF-16 at the beginning of a file says more
    than this key."""
    max_record_bytes: Annotated[int, Field(ge=2**10, le=2**30)] = 2**24
    """Longest line, and longest row of a table, in bytes of the unpacked file."""
    max_columns: Annotated[int, Field(ge=1, le=2**20)] = 2**14
    """Most columns of a table."""
    bad: Literal["error", "skip"] = "error"
    """How to treat rows that cannot be read: name them and stop, or leave them out, counted and
    listed."""
    sequence_field: FieldNames = "sequence"
    """Name of the JSON field or table column with the sequence; a list of names joins their texts,
    with the token <sep> between them."""
    label_field: FieldName = "label"
    """Name of the JSON field or table column with the label."""
    prefix_labels_field: FieldName | None = None
    """Name of the field with a label for every prefix of the sequence, as many as it has tokens;
    for `train.objective: prefix`. null: there are none."""
    tokens: Literal["ids", "words", "characters", "subwords"] = "words"
    """The unit of a sequence: an integer id >= 0, a word, a character, or a part of a word as
    byte-pair encoding of the training data finds them (subwords; `pip install 'rnncls[text]'`)."""
    lowercase: bool = False
    """Make all letters of a text small before it becomes tokens, as Python's str.lower does."""
    word_boundaries: Literal["whitespace", "punctuation"] = "whitespace"
    """Where words end: at white space alone, or also where letters, digits and marks meet
    (punctuation): docs/data.md has the rule. For words and subwords."""
    vocabulary_size: Annotated[int, Field(ge=2, le=2**20)] = 4096
    """Most different subwords, single characters among them, beside <unk>, <sep> and <end>; for
    `tokens: subwords`."""
    end_token: bool = False
    """Add a token that marks the end of each sequence, so that n-grams tell its last tokens from
    others; best for single words by their characters."""
    token_dropout: BelowOne = 0.0
    """Probability with which a training step sees <unk> in the place of a token; needs
    `unknown: unk`."""
    unknown: Literal["unk", "error"] = "unk"
    """How to treat tokens that the training data lacks: replace by <unk>, or raise an error."""
    min_count: Count = 1
    """Tokens that occur less often in the training data become <unk>; needs `unknown: unk`."""
    max_length: Count | None = None
    """Longest length in tokens; `truncate` decides about longer sequences. null: no limit."""
    truncate: Literal["head", "tail", "error"] = "head"
    """How to treat longer sequences: keep the first max_length tokens (head), the last ones (tail),
    or raise an error."""
    empty: Literal["error", "drop"] = "error"
    """How to treat sequences without a token: raise an error, or leave them out and count them."""
    batching: Literal["shuffle", "bucket"] = "shuffle"
    """How batches are formed: at random (shuffle), or at random among similar lengths (bucket)."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """Layout of a batch: packed (no padding) or padded (not for bidirectional models; faster on
    CUDA). auto: padded on CUDA where the model allows it, and on the CPU where steps are eager and
    faster so; else packed. Batches that are run in pieces, or have prefix labels, are packed."""

    @property
    def sequence_fields(self) -> tuple[str, ...]:
        """The names of the fields that make a sequence; most files have one."""
        names = self.sequence_field
        return (names,) if isinstance(names, str) else names

    @field_validator("sequence_field", "label_field", "prefix_labels_field", mode="before")
    @classmethod
    def _name_of_number(cls, value: Any) -> Any:
        # Without a header, columns are called 1, 2, 3: YAML reads these as integers.
        if isinstance(value, list | tuple):
            return tuple(cls._name_of_number(name) for name in value)
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _check(self) -> "FilesConfig":
        # The share of the training file that is held out. A split with a file of its own takes none
        # of it, whatever its fraction says: the fractions have defaults.
        held_out = 0.0
        if self.val is None:
            held_out += self.val_fraction
        if self.test is None:
            held_out += self.test_fraction
        if held_out >= 1:
            expected = "val_fraction + test_fraction below 1"
            raise _clash("val_fraction", "no training data is left", expected, f"{held_out:g}")

        if len(self.sequence_fields) > 1 and self.tokens == "ids":
            what = "several columns are joined by <sep>, which is no id"
            expected = "one sequence_field, or tokens: words, characters or subwords"
            raise _clash("sequence_field", what, expected, ", ".join(self.sequence_fields))

        if len(self.sequence_fields) > 1 and self.prefix_labels_field is not None:
            what = "several columns are joined by <sep>, for which there is no prefix label"
            expected = "one sequence_field, or prefix_labels_field: null"
            found = ", ".join(self.sequence_fields)
            raise _clash("prefix_labels_field", what, expected, found)

        self._check_tokens()

        # Without <unk>, there is nothing that a rare token could become.
        if self.min_count > 1 and self.unknown == "error":
            what = "rare tokens would be unknown, and unknown tokens an error"
            expected = "min_count: 1, or unknown: unk"
            raise _clash("min_count", what, expected, f"{self.min_count}", "data.unknown=unk")
        if self.token_dropout > 0 and self.unknown == "error":
            what = "dropped tokens become <unk>, and unknown tokens are an error"
            expected = "token_dropout: 0, or unknown: unk"
            found = f"{self.token_dropout}"
            raise _clash("token_dropout", what, expected, found, "data.unknown=unk")
        return self

    def _check_tokens(self) -> None:
        """Refuse keys that would be without effect on tokens of this kind, or contradict it."""
        if self.lowercase and self.tokens == "ids":
            what = "ids have no letters to make small"
            raise _clash("lowercase", what, "lowercase: false, or other tokens", "tokens: ids")
        if self.word_boundaries == "punctuation" and self.tokens in ("ids", "characters"):
            what = f"{self.tokens} have no words that could end at punctuation"
            expected = "word_boundaries: whitespace, or tokens: words or subwords"
            raise _clash("word_boundaries", what, expected, f"tokens: {self.tokens}")
        if self.min_count > 1 and self.tokens == "subwords":
            what = "a rare word becomes its parts, and vocabulary_size says how many of them"
            expected = "min_count: 1, or tokens: words"
            raise _clash("min_count", what, expected, f"{self.min_count}", "data.vocabulary_size")

        # A label belongs to a token of the file.
        if self.prefix_labels_field is None:
            return
        if self.tokens == "subwords":
            what = "prefix labels are those of whole tokens, and subwords are parts of words"
            expected = "tokens: words, or prefix_labels_field: null"
            raise _clash("prefix_labels_field", what, expected, self.prefix_labels_field)
        if self.end_token:
            what = "there is no prefix label for the token at the end"
            expected = "end_token: false, or prefix_labels_field: null"
            raise _clash("prefix_labels_field", what, expected, self.prefix_labels_field)


# The keys of files that say how their bytes become rows, and nothing about the model.
READING_KEYS = (
    "format",
    "separator",
    "quoting",
    "header",
    "encoding",
    "max_record_bytes",
    "max_columns",
)

DataConfig = Annotated[SumModConfig | FilesConfig, Field(discriminator="source")]


class ModelConfig(Section):
    """The model: embedding -> RNN, LSTM or GRU -> pooling of the last layer -> linear head."""

    cell: Literal["rnn", "lstm", "gru", "none"] = "rnn"
    """Recurrent layers: torch.nn.RNN, LSTM or GRU. none: the head sees the mean of the embeddings,
    which is the n-gram control; what is said below of recurrent layers, pooling and skip is
    ignored."""
    embedding_dim: Count = 10
    """Size of each token's embedding vector, the input of the first recurrent layer."""
    ngrams: NgramSizes = ()
    """Lengths of the n-grams of tokens that have an embedding of their own, such as [2, 3]. That of
    each n-gram is added to the embedding of the token at which it ends."""
    ngram_table: Annotated[int, Field(ge=1, le=2**24)] = 65536
    """Rows of the table of n-gram embeddings; a hash says in which of them an n-gram has its own,
    which others may share."""
    positions: Literal["none", "learned"] = "none"
    """Add a trained vector for its place in the sequence to each token's embedding (learned); needs
    a largest length, data.max_length."""
    embeddings: FilePath | None = None
    """File of word vectors in the text format of GloVe or word2vec, plain or packed, from which the
    embeddings of the tokens that it has begin; relative to the config file. null: none."""
    freeze_embeddings: bool = False
    """Keep the embeddings of tokens as they begin."""
    hidden_size: Count = 256
    """Size of the hidden state of each recurrent layer and direction."""
    num_layers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of stacked recurrent layers."""
    nonlinearity: Literal["tanh", "relu"] = "relu"
    """Activation function of `cell: rnn`; ignored by lstm and gru, which have their own."""
    bias: bool = True
    """Whether the recurrent layers have the biases b_ih and b_hh."""
    dropout: BelowOne = 0.0
    """Dropout probability between recurrent layers; needs num_layers >= 2."""
    embedding_dropout: BelowOne = 0.0
    """Dropout probability of each number of the first layer's inputs."""
    ngram_dropout: BelowOne = 0.0
    """Dropout probability of each n-gram at each token; ignored without ngrams."""
    head_dropout: BelowOne = 0.0
    """Dropout probability of each number that the head sees."""
    state_noise: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Noise in training on each state that W_hh multiplies: normal numbers of this size, relative
    to the root mean square of that state. 0: none."""
    bidirectional: bool = False
    """Also read each sequence from its last token to its first, and use both directions."""
    pooling: Literal["last", "mean", "max", "last_mean_max"] = "last"
    """What the head sees of the last layer's states: the final one of each direction (last), their
    mean or largest value over the sequence's own tokens, or all three side by side."""
    skip: bool = False
    """Whether the head also sees, beside the states, the mean of the first layer's inputs."""
    initial_state: Literal["zeros", "learned"] = "zeros"
    """The state before the first token, h_0 and for lstm c_0 of each layer and direction: zeros, or
    parameters that begin at zero and are trained like the others (learned)."""
    recurrent_init: Literal["default", "orthogonal", "identity"] = "orthogonal"
    """Initial W_hh of each gate: PyTorch's uniform default, a random orthogonal matrix, or the
    identity (with b_hh = 0)."""
    init_gain: Positive | None = None
    """Factor on the initial embedding, W_ih and W_hh; 1 leaves them unscaled. null: the default of
    the data source."""
    embedding_gain: Positive = 1.0
    """Another factor on the initial embedding alone, which is drawn from a normal distribution:
    0.1 lets rare tokens of a text say little until they are learned."""

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        # torch.nn applies dropout to the output of every layer but the last.
        if self.dropout > 0 and self.num_layers == 1:
            what = "dropout acts between layers, and model.num_layers is 1"
            expected = "dropout: 0, or num_layers of at least 2"
            found = f"dropout: {self.dropout}, num_layers: 1"
            raise _clash("dropout", what, expected, found, "model.dropout=0 or model.num_layers=2")
        if self.freeze_embeddings and self.embeddings is None:
            what = "embeddings that nobody has trained would stay as they are drawn"
            expected = "freeze_embeddings: false, or a file in model.embeddings"
            raise _clash("freeze_embeddings", what, expected, "true", "model.embeddings=FILE")
        return self


class OptimizerConfig(Section):
    """The optimizer of all parameters."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """Algorithm: torch.optim's Adam, AdamW (decoupled weight decay) or SGD."""
    lr: Positive = 2e-3
    """Peak learning rate, reached after the warm-up."""
    weight_decay: NotNegative | None = None
    """Weight decay on all parameters: decoupled for adamw, an L2 penalty for adam and sgd. null:
    the default of the data source."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of the running averages of gradient and squared gradient, for adam and adamw."""
    eps: Positive = 1e-8
    """Small term added to the denominator of the update, for adam and adamw."""
    momentum: BelowOne = 0.0
    """Momentum factor, for sgd; must be 0 for adam and adamw."""

    @model_validator(mode="after")
    def _check(self) -> "OptimizerConfig":
        # Adam's betas[0] is its momentum: a value here would be silently ignored.
        if self.momentum > 0 and self.name != "sgd":
            what = f"momentum is a setting of sgd, and optimizer.name is {self.name}"
            expected = "momentum: 0, or name: sgd"
            raise _clash("momentum", what, expected, f"{self.momentum}", "optimizer.betas")
        return self


class ScheduleConfig(Section):
    """The learning rate of each step: linear warm-up from 0 to optimizer.lr, then `name`."""

    name: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up: stay at lr (constant), or fall to min_lr at the last step."""
    warmup_steps: Steps | None = None
    """Number of steps of the linear warm-up; 0 starts at lr. null: the default of the data source,
    which for files is a share of the run's steps."""
    min_lr: NotNegative = 1e-4
    """Learning rate at the last step of a linear or cosine schedule; at most lr."""


class TrainConfig(Section):
    """The training loop: when it ends, what it logs and saves, and how it computes."""

    max_steps: Steps = 5000
    """Number of optimizer steps of the whole run."""
    max_epochs: Count | None = None
    """End the run after this many epochs if that comes before max_steps; for `source: files`.
    null: max_steps alone decides."""
    batch_size: Count = 128
    """Number of sequences per step."""
    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this 2-norm if theirs is larger. null: no clipping."""
    log_every: Count = 100
    """Steps between two log entries; each averages over the steps since the previous one."""
    eval_every: Count = 500
    """Steps between two evaluations on validation data; there is one after the last step too."""
    eval_samples: Annotated[int, Field(ge=1, le=2**40)] | None = None
    """Number of validation sequences per evaluation, always the same ones; fewer if a file has
    fewer. null: the default of the data source, which for files is all of them."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints; also saved after the last step and at each best evaluation."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many of the newest checkpoints stay on disk, in addition to the best one."""
    histogram_every: Count | None = None
    """Steps between two TensorBoard histograms of weights and gradients. null: no histograms."""
    diagnostics_every: Count | None = None
    """Steps between two diagnostics in TensorBoard, also after the last step: saturated units, how
    much of a gradient reaches the first token, and size, gradient and update of each parameter.
    null: none."""
    plots: bool | None = None
    """Show the run in plots/ and TensorBoard: pictures, tables, graph, projector. null: yes, but
    not for the members of a sweep, nor for runs of fewer than 50 steps."""
    stop_at_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Stop after an evaluation with at least this validation accuracy. null: do not stop for it."""
    patience: Count | None = None
    """Stop after this many evaluations in a row without a better `best_metric`. null: never."""
    max_skipped_steps: Annotated[int, Field(ge=0, le=2**20)] = 0
    """How many steps in a row may be skipped for a loss or gradient that is not finite; one more
    ends the run."""
    deterministic: bool = False
    """Make CUDA compute the same bits every time, at some cost in speed. The CPU always does."""
    objective: Literal["sequence", "prefix"] = "sequence"
    """What the loss asks for: the label of each sequence (sequence), or a label after every token
    (prefix). Evaluation always asks for that of the sequence."""
    recompute_every: Count | None = None
    """Keep the states of every K-th time step alone, and compute the others again in the backward
    pass: the same gradient in less memory and more time. null: keep all."""
    truncate_after: Count | None = None
    """Truncated backpropagation through time: gradients reach back K tokens from the end of each
    sequence, and no further. Another gradient. null: through the whole sequence."""
    average_weights: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluate, and predict with, a running average of the weights, of which each step keeps this
    share; 0.999, say. null: the weights themselves."""
    baseline: Literal["none", "control"] = "none"
    """What is trained after the run and shown beside it: nothing, or the n-gram control, the same
    model without its recurrence (control)."""
    label_smoothing: BelowOne = 0.0
    """Share of each training label that is spread evenly over all classes, as in
    torch.nn.functional.cross_entropy. What is evaluated is not smoothed."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the classes in the loss: all 1 (none), or inverse to their frequency in training
    (balanced; for `source: files`)."""
    best_metric: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    """Validation metric that decides which evaluation, and so which checkpoint, is the best."""
    engine: Literal["auto", "eager", "compiled", "captured"] = "auto"
    """How steps are computed: by PyTorch (eager), a compiled function (compiled; CPU, needs numba)
    or CUDA graphs (captured). auto: the fastest available. Results are equal up to rounding."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of matrix products: float32, tf32 (10 bits of mantissa; CUDA) or bfloat16 (7 bits).
    Weights are always float32."""
    profile: bool = False
    """Write into the run directory what the parts of an eager step take, and a torch.profiler trace
    of 20 such steps."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = 1
    """Number of CPU threads of PyTorch. 1 is fastest for small models, and its results are the same
    to the bit on any number of cores. null: PyTorch's default."""


class Config(Section):
    """Everything a run depends on."""

    data: DataConfig = Field(default_factory=SumModConfig)
    """The sequences and their labels."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The model: its layers, their sizes and their initial weights."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """The optimizer and its settings."""
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    """The learning rate as a function of the step."""
    train: TrainConfig = Field(default_factory=TrainConfig)
    """The training loop."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random: initial weights, batches and dropout."""
    device: Annotated[
        str, Field(pattern=DEVICE_PATTERN, examples=["auto", "cpu", "cuda", "cuda:0"])
    ] = "auto"
    """Device to compute on: auto (CUDA if available, else the CPU), cpu, cuda or cuda:INDEX."""

    @model_validator(mode="after")
    def _fill(self) -> "Config":
        # The data source says what null means. A config is frozen; while it is made, its sections
        # may still be replaced, and nowhere else.
        for name, section in _filled(self, known_numbers(self.data.source)).items():
            object.__setattr__(self, name, section)
        return self

    @model_validator(mode="after")
    def _check(self) -> "Config":
        # A constant schedule never reaches min_lr.
        if self.schedule.name != "constant" and self.schedule.min_lr > self.optimizer.lr:
            expected = f"at most optimizer.lr = {self.optimizer.lr}"
            found = str(self.schedule.min_lr)
            what = "the schedule would end above where it starts"
            raise _clash("schedule.min_lr", what, expected, found)

        # The backward direction begins at the last column, which is padding for a short sequence.
        if self.data.layout == "padded" and self.model.bidirectional:
            what = "a bidirectional model would read the padding first"
            expected = "data.layout: auto or packed"
            found = "padded, model.bidirectional: true"
            raise _clash("data.layout", what, expected, found, "data.layout=auto")

        # torch's own functions, and cuDNN's, run padded batches and let nobody at their states. A
        # model without recurrence ignores the noise.
        has_noise = self.model.state_noise > 0 and self.model.cell != "none"
        if self.data.layout == "padded" and has_noise:
            what = "noise on states needs packed batches"
            expected = "data.layout: auto or packed"
            found = f"padded, model.state_noise: {self.model.state_noise}"
            raise _clash("data.layout", what, expected, found, "data.layout=auto")

        self._check_objective()
        self._check_inputs()
        self._check_pieces()
        if isinstance(self.data, SumModConfig):
            self._check_generated(self.data)

        # Of files, with the smallest possible vocabulary; checked again when they have been read.
        check_size(self, *sizes(self))
        return self

    def _check_objective(self) -> None:
        """Refuse models and data that have no answer, or no label, for a prefix."""
        if self.train.objective == "sequence":
            return

        # What the reverse direction says after a token depends on those that come behind it.
        expected = "train.objective: sequence, or "
        if self.model.bidirectional:
            what = "a model that reads backwards has no state of a prefix"
            expected += "model.bidirectional: false"
            found = "prefix, model.bidirectional: true"
            raise _clash("train.objective", what, expected, found, "model.bidirectional=false")
        if self.model.pooling != "last":
            what = "a prefix is classified by its last state"
            expected += "model.pooling: last"
            found = f"prefix, model.pooling: {self.model.pooling}"
            raise _clash("train.objective", what, expected, found, "model.pooling=last")
        if self.model.cell == "none" or self.model.skip:
            found = "model.skip: true" if self.model.skip else "model.cell: none"
            what = "the mean over a sequence is not known after a prefix"
            expected += "model.cell: rnn, lstm or gru, and model.skip: false"
            raise _clash("train.objective", what, expected, f"prefix, {found}")
        if self.train.baseline == "control":
            what = "the n-gram control has no answer for a prefix"
            expected += "train.baseline: none"
            found = "prefix, train.baseline: control"
            raise _clash("train.objective", what, expected, found, "train.baseline=none")
        if isinstance(self.data, FilesConfig) and self.data.prefix_labels_field is None:
            what = "files have no prefix labels unless a field is named"
            expected += "data.prefix_labels_field"
            found = "prefix, data.prefix_labels_field: null"
            remedy = "data.prefix_labels_field=NAME, a field with a list of labels"
            raise _clash("train.objective", what, expected, found, remedy)

    def _check_inputs(self) -> None:
        """Refuse positions without a largest length, and vectors for tokens without names."""
        if self.model.positions == "learned" and self.data.max_length is None:
            what = "a table of positions needs a largest length"
            expected = "model.positions: none, or data.max_length"
            found = "learned, data.max_length: null"
            raise _clash("model.positions", what, expected, found, "data.max_length=200")
        if self.model.embeddings is not None and self.data.source == "sum_mod":
            what = "word vectors are for words, and data.source is sum_mod"
            found = self.model.embeddings
            expected = "data.source: files"
            raise _clash("model.embeddings", what, expected, found, "model.embeddings=null")

    def _check_pieces(self) -> None:
        """Refuse pieces to be computed again that are longer than what has a gradient."""
        every = self.train.recompute_every
        after = self.train.truncate_after
        if every is not None and after is not None and every > after:
            what = "nothing would be computed again: gradients reach back fewer tokens"
            expected = f"at most train.truncate_after = {after}"
            raise _clash(
                "train.recompute_every", what, expected, str(every), "train.recompute_every=null"
            )

    def _check_generated(self, data: SumModConfig) -> None:
        """Refuse what only files have, and batches larger than any machine's memory."""
        if self.train.max_epochs is not None:
            raise self._needs_files("max_epochs", "null")
        if self.train.class_weights != "none":
            raise self._needs_files("class_weights", "none")

        # Generated digits are drawn into a rectangle as wide as the longest length.
        tokens = self.train.batch_size * data.max_length
        if tokens > MAX_BATCH_TOKENS:
            what = f"a batch would need {8 * tokens:,} bytes of tokens"
            expected = f"train.batch_size * data.max_length of at most {MAX_BATCH_TOKENS:,}"
            remedy = "smaller batches or shorter sequences"
            raise _clash("train.batch_size", what, expected, f"{tokens:,}", remedy)

    def _needs_files(self, key: str, neutral: str) -> PydanticCustomError:
        """Return the error of a key of `train` that is not `neutral` for generated data."""
        what = f"{key} needs a training file, and data.source is sum_mod"
        found = str(getattr(self.train, key))
        remedy = f"train.{key}={neutral}"
        return _clash(f"train.{key}", what, "data.source: files", found, remedy)


def with_numbers(
    config: Config, max_steps: int | None = None, num_validation: int | None = None
) -> Config:
    """Return the config with the numbers that null stands for in a config of files.

    `max_steps`: of the whole run; None if the files have not been read, and then it is known only
    where no epochs can cut the run short. `num_validation`: how many sequences there are to
    validate on; None if that is not known. What is not known stays null.
    """
    if max_steps is None and config.train.max_epochs is None:
        max_steps = config.train.max_steps

    numbers: dict[str, float] = {}
    if max_steps is not None:
        numbers["schedule.warmup_steps"] = default_warmup(max_steps)
    if num_validation is not None:
        numbers["train.eval_samples"] = num_validation
    return config.model_copy(update=_filled(config, numbers))


def counted_later(config: Config) -> list[str]:
    """Return the keys whose default is counted once the files have been read: those still null."""
    values = flatten(config)
    return [key for key in COUNTED if values[key] is None]


def _filled(config: Config, numbers: dict[str, float]) -> dict[str, Section]:
    """Return the sections, by name, in which a number takes the place of null."""
    sections: dict[str, Section] = {}
    for key, value in numbers.items():
        name, _, field = key.partition(".")
        section = sections.get(name, getattr(config, name))
        if getattr(section, field) is None:
            sections[name] = section.model_copy(update={field: value})
    return sections


def sizes(config: Config) -> tuple[int, int]:
    """Return (number of different tokens, number of classes) as far as the config knows them.

    Files determine their own sizes; until they are read, the smallest possible ones, (1, 1).
    """
    data = config.data
    if isinstance(data, SumModConfig):
        return data.num_embeddings, data.num_classes
    return 1, 1


def check_size(config: Config, num_embeddings: int, num_classes: int) -> None:
    """Raise PydanticCustomError, a ValueError, if the model is larger than any machine's memory."""
    size = num_parameters(config, num_embeddings, num_classes)
    if size > MAX_PARAMETERS:
        what = f"the model would need {4 * size:,} bytes of weights"
        expected = f"at most {MAX_PARAMETERS:,} parameters"
        raise _clash("model.hidden_size", what, expected, f"{size:,} parameters", "smaller sizes")


def most_positions(data: SumModConfig | FilesConfig) -> int:
    """Return how many tokens a sequence has at most, its end token among them; 0 if any number."""
    if data.max_length is None:
        return 0
    has_end = isinstance(data, FilesConfig) and data.end_token
    return data.max_length + has_end


def num_parameters(config: Config, num_embeddings: int, num_classes: int) -> int:
    """Return the number of trainable numbers, by arithmetic alone: nothing is allocated."""
    model = config.model
    directions = 2 if model.bidirectional else 1
    gates = {"rnn": 1, "lstm": 4, "gru": 3, "none": 0}[model.cell]

    # b_ih and b_hh: PyTorch has both.
    biases = 2 if model.bias else 0

    num_vectors = num_embeddings
    if model.ngrams:
        num_vectors += model.ngram_table
    if model.positions == "learned":
        num_vectors += most_positions(config.data)
    count = num_vectors * model.embedding_dim
    if model.cell == "none":
        return count + (model.embedding_dim + 1) * num_classes

    for layer in range(model.num_layers):
        # A layer above the first reads the states of both directions.
        inputs = model.embedding_dim if layer == 0 else model.hidden_size * directions
        # Each unit of each gate has a row of W_ih, a row of W_hh and its biases.
        per_unit = inputs + model.hidden_size + biases
        count += directions * gates * model.hidden_size * per_unit

    if model.initial_state == "learned":
        parts = 2 if model.cell == "lstm" else 1
        count += parts * model.num_layers * directions * model.hidden_size

    # The head is linear, with a bias.
    pooled = 3 if model.pooling == "last_mean_max" else 1
    head_inputs = model.hidden_size * directions * pooled
    if model.skip:
        head_inputs += model.embedding_dim
    return count + (head_inputs + 1) * num_classes


def flatten(config: Config) -> dict[str, Any]:
    """Return every key, dotted, with its value: `{"data.modulus": 10, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat
