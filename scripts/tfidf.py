"""Measure TF-IDF n-grams with logistic regression, the simple baseline, on the sets of a folder.

    pip install -e '.[bench]'
    python -m scripts.text_sets --output data/text
    python -m scripts.tfidf data/text --output runs/tfidf

How sequences become numbers, and how strong the regression is bound to small weights, is chosen on
validation from a small grid. It is trained on the training split alone, as a run is. The test split
is seen once. Each set gets NAME.json, which has the answers to the test sequences, in their order.
"""

import csv
import json
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from rnncls.evaluation.metrics import wilson_interval
from rnncls.system.files import write_atomically
from scripts.source_lines import SPLITS
from scripts.text_sets import TOKENS

# Words without capitals, and single marks.
WORDS_AND_MARKS = r"\w+|[^\w\s]"

# The arguments of TfidfVectorizer, by what a token is. None: the numbers themselves.
WORD_WAYS: dict[str, dict[str, Any] | None] = {
    "words": {"min_df": 2},
    "words, 1-2": {"ngram_range": (1, 2), "min_df": 2},
    "words and marks, 1-2": {
        "ngram_range": (1, 2),
        "min_df": 2,
        "token_pattern": WORDS_AND_MARKS,
    },
}
NAME_WAYS: dict[str, dict[str, Any] | None] = {
    f"characters, {first}-{last}": {
        "analyzer": "char_wb",
        "ngram_range": (first, last),
        "lowercase": False,
    }
    for first, last in ((1, 4), (2, 5))
}
CODE_WAYS: dict[str, dict[str, Any] | None] = {
    f"characters, {first}-{last}": {
        "analyzer": "char",
        "ngram_range": (first, last),
        "lowercase": False,
        "min_df": 3,
    }
    for first, last in ((1, 4), (2, 5))
}
ID_WAYS: dict[str, dict[str, Any] | None] = {
    f"ids, 1-{last}": {"token_pattern": r"\S+", "ngram_range": (1, last)} for last in (1, 2, 3)
}
WAYS = {  # by set
    "texts": WORD_WAYS,
    "words": NAME_WAYS,
    "code": CODE_WAYS,
    "functions": ID_WAYS,
    "pixels": ID_WAYS,
}
NUMBERS = "the numbers themselves"  # for ids, where all sequences are of one length

STRENGTHS = (2.0, 8.0, 32.0, 128.0)  # C of the regression: the smaller, the smaller its weights
MOST_ITERATIONS = 300
TOLERANCE = 1e-3

Table = tuple[list[str], list[str]]  # texts, labels


class Tried(NamedTuple):
    """A way with one strength."""

    way: str
    strength: float
    val_accuracy: float
    seconds: float  # of the processor, until it was trained, weaker ones before it
    predictions: list[str]  # of the test split


class Found(NamedTuple):
    """What the baseline comes to on a set, as NAME.json has it."""

    way: str
    strength: float
    val_accuracy: float
    accuracy: float
    low: float  # of Wilson's interval, 95 %
    high: float
    macro_f1: float
    seconds: float  # of the processor, for what was chosen
    seconds_of_all: float  # for all that was tried
    predictions: list[str]


def read_table(path: Path) -> Table:
    """Return texts and labels of a file of scripts/text_sets.py."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def measure(folder: Path) -> Found:
    """Choose on validation, and answer the test split of the set in a folder."""
    from sklearn.metrics import f1_score

    tables = {split: read_table(folder / f"{split}.csv") for split in SPLITS}
    ways = dict(WAYS[folder.name])
    is_of_ids = TOKENS[folder.name] == "ids"
    if is_of_ids and len({len(text.split()) for text in tables["train"][0]}) == 1:
        ways[NUMBERS] = None

    tried = []
    began = time.process_time()
    for way, arguments in ways.items():
        tried += try_way(way, arguments, tables)
    seconds_of_all = time.process_time() - began

    best = max(tried, key=lambda each: each.val_accuracy)
    labels = tables["test"][1]
    correct = sum(map(str.__eq__, best.predictions, labels))
    low, high = wilson_interval(correct, len(labels))
    return Found(
        way=best.way,
        strength=best.strength,
        val_accuracy=best.val_accuracy,
        accuracy=correct / len(labels),
        low=low,
        high=high,
        macro_f1=float(f1_score(labels, best.predictions, average="macro")),
        seconds=round(best.seconds, 1),
        seconds_of_all=round(seconds_of_all, 1),
        predictions=best.predictions,
    )


def try_way(way: str, arguments: dict[str, Any] | None, tables: dict[str, Table]) -> list[Tried]:
    """Train with one strength after the other, until validation falls; answer the test split.

    Each begins with the weights of the one before it, which saves most of the time.
    """
    from sklearn.linear_model import LogisticRegression

    began = time.process_time()
    inputs = inputs_of(arguments, tables)
    model = LogisticRegression(max_iter=MOST_ITERATIONS, tol=TOLERANCE, warm_start=True)

    tried: list[Tried] = []
    for strength in STRENGTHS:
        model.set_params(C=strength)
        model.fit(inputs["train"], tables["train"][1])
        seconds = time.process_time() - began

        val_accuracy = float(model.score(inputs["val"], tables["val"][1]))
        predictions = model.predict(inputs["test"]).tolist()
        tried.append(Tried(way, strength, val_accuracy, seconds, predictions))
        if len(tried) > 1 and val_accuracy < tried[-2].val_accuracy:
            break
    return tried


def inputs_of(arguments: dict[str, Any] | None, tables: dict[str, Table]) -> dict[str, Any]:
    """Return the rows of each split as vectors; only the training split decides what these are."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if arguments is None:
        numbers = {split: numbers_of(texts) for split, (texts, _) in tables.items()}
        largest = max(numbers["train"].max(), 1)
        return {split: values / largest for split, values in numbers.items()}

    vectors = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **arguments)
    vectors.fit(tables["train"][0])
    return {split: vectors.transform(texts) for split, (texts, _) in tables.items()}


def numbers_of(texts: list[str]) -> "np.ndarray[Any, np.dtype[np.float64]]":
    """Return sequences of one length as numbers, (sequences, length)."""
    return np.array([text.split() for text in texts], dtype=float)


def main(
    sets: Annotated[Path, typer.Argument(help="The folder of scripts/text_sets.py.")],
    output: Annotated[Path, typer.Option()] = Path("runs/tfidf"),
    only: Annotated[str, typer.Option(help="Names of sets, with commas.")] = "",
) -> None:
    """Measure each set that the folder has, and print a line of each."""
    output.mkdir(parents=True, exist_ok=True)
    for name in only.split(",") if only else TOKENS:
        found = measure(sets / name)
        write_atomically(output / f"{name}.json", json.dumps(found._asdict()).encode())
        print(line_of(name, found), flush=True)


def line_of(name: str, found: Found) -> str:
    """Return what was found, as a line."""
    score = f"{found.accuracy:.4f} ({found.low:.4f} to {found.high:.4f})"
    times = f"{found.seconds:.1f} s, all that was tried {found.seconds_of_all:.1f} s"
    chosen = f"{found.way}, C = {found.strength:g}, validation {found.val_accuracy:.4f}"
    return f"{name}: {score}, macro-F1 {found.macro_f1:.4f}; {times}; {chosen}"


if __name__ == "__main__":
    typer.run(main)
