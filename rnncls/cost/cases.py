"""What is measured: cases, each of one hidden size and one length, of rnncls or of torch itself."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic_core import PydanticCustomError

from rnncls.config import Config, SumModConfig, check_size
from rnncls.config.load import parse_config
from rnncls.config.schema import MAX_BATCH_TOKENS, num_parameters
from rnncls.errors import ConfigError, Problem

# A case takes seconds: so many are more likely a slip of the pen than a wish.
MOST_CASES = 1000

Implementation = Literal["rnncls", "torch"]


@dataclass(frozen=True)
class Case:
    """One hidden size at one length: batches of which every sequence has this length."""

    config: Config  # of this hidden size; its data is generated
    sizes: tuple[int, int]  # numbers of (different tokens, classes)
    length: int
    implementation: Implementation
    seconds: float  # for which each quantity is measured

    @property
    def hidden_size(self) -> int:
        return self.config.model.hidden_size

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a batch."""
        return self.batch_size * self.length

    @property
    def num_parameters(self) -> int:
        # There are as many positions as tokens in a sequence.
        data = self.config.data.model_copy(update={"max_length": self.length})
        return num_parameters(self.config.model_copy(update={"data": data}), *self.sizes)

    def to_json(self) -> dict[str, Any]:
        """Return what `case_of` reads."""
        return {**asdict(self), "config": self.config.model_dump(mode="json")}


def case_of(raw: dict[str, Any]) -> Case:
    """Return the case of its JSON."""
    config = parse_config(raw["config"], "case")
    return Case(**{**raw, "config": config, "sizes": tuple(raw["sizes"])})


def plan_cases(
    config: Config,
    sizes: tuple[int, int],
    hidden_sizes: Sequence[int],
    lengths: Sequence[int],
    seconds: float,
    with_stock: bool,
) -> list[Case]:
    """Return a case for each hidden size and length, from small to large.

    `with_stock`: each is followed by the same with torch's own module.

    Raises: ConfigError for too many cases, for one that is too large for any machine, and for
    torch's own module where there is none.
    """
    if with_stock and config.model.cell == "none":
        what = "this model has no recurrent layers, and torch.nn no module for it"
        found = "model.cell: none"
        raise ConfigError(Problem(what, "--stock", found=found, remedy="without --stock", id="C17"))
    implementations: list[Implementation] = ["rnncls", "torch"] if with_stock else ["rnncls"]
    require_possible(config, sizes, hidden_sizes, lengths)
    generated = _generated(config)
    cases = []
    for hidden_size in hidden_sizes:
        of_size = _with_hidden(generated, hidden_size)
        for length in lengths:
            for implementation in implementations:
                own = of_size if implementation == "rnncls" else _without_extras(of_size)
                cases.append(Case(own, sizes, length, implementation, seconds))
    return cases


def require_possible(
    config: Config, sizes: tuple[int, int], hidden_sizes: Sequence[int], lengths: Sequence[int]
) -> None:
    """Raise ConfigError for too many cases, or one that is larger than any machine's memory."""
    count = len(hidden_sizes) * len(lengths)
    if count > MOST_CASES:
        raise ConfigError(
            Problem(
                "too many cases",
                "--hidden and --lengths",
                expected=f"at most {MOST_CASES:,}, of seconds each",
                found=f"{count:,}",
                id="C17",
            )
        )

    largest = hidden_sizes[-1]
    try:
        check_size(_with_hidden(config, largest), *sizes)
    except PydanticCustomError as error:
        context = error.context or {}
        raise ConfigError(
            Problem(
                context["what"],
                f"--hidden {largest:,}",
                expected=context["expected"],
                found=context["found"],
                id="C12",
            )
        ) from None

    tokens = config.train.batch_size * lengths[-1]
    if tokens > MAX_BATCH_TOKENS:
        raise ConfigError(
            Problem(
                f"a batch would need {8 * tokens:,} bytes of tokens",
                f"--lengths {lengths[-1]:,}",
                expected=f"train.batch_size * length of at most {MAX_BATCH_TOKENS:,}",
                found=f"{tokens:,}",
                remedy="train.batch_size=16, or shorter lengths",
                id="C12",
            )
        )


def _generated(config: Config) -> Config:
    """Return the config with generated data, in place of that of files.

    What a step costs does not depend on which tokens it reads.
    """
    if isinstance(config.data, SumModConfig):
        return config
    raw = config.model_dump(mode="json")
    raw["data"] = {"source": "sum_mod", "layout": config.data.layout}
    raw["model"] |= {"embeddings": None, "freeze_embeddings": False}
    raw["train"] |= {"max_epochs": None, "class_weights": "none"}
    raw["model"] |= {"embeddings": None, "freeze_embeddings": False}
    return parse_config(raw, "config")


def _with_hidden(config: Config, hidden_size: int) -> Config:
    model = config.model.model_copy(update={"hidden_size": hidden_size})
    return config.model_copy(update={"model": model})


def _without_extras(config: Config) -> Config:
    """Return the config without what torch's own modules cannot do."""
    model = config.model.model_copy(
        update={
            "pooling": "last",
            "initial_state": "zeros",
            "ngrams": (),
            "positions": "none",
            "skip": False,
            "embedding_dropout": 0.0,
            "ngram_dropout": 0.0,
            "head_dropout": 0.0,
            "state_noise": 0.0,
        }
    )
    train = config.train.model_copy(
        update={"objective": "sequence", "recompute_every": None, "truncate_after": None}
    )
    return config.model_copy(update={"model": model, "train": train})
