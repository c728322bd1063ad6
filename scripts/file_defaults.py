"""Measure what the defaults for data from files are worth, on five real sets.

    python -m scripts.file_defaults --output runs/defaults
    python -m scripts.file_defaults --output runs/defaults --set functions --seeds 0-2

The sets are those of scripts/text_sets.py: texts, names, code and ids. On each, the defaults are
trained, and twenty other settings. They are compared on validation; the test set is for the
defaults alone. docs/data.md shows the result.

Each run is a line of results.tsv, written when the run ends. A run that is there already is not
repeated, so the command can be stopped and given again.
"""

import csv
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, NamedTuple

import typer

from rnncls.config import Config, load_config
from rnncls.config.ranges import parse_seeds
from rnncls.data.guess import guess_config
from rnncls.evaluation.evaluate import evaluate
from rnncls.rundir.checkpoint_files import load_checkpoint
from rnncls.rundir.tables import read_metrics
from rnncls.training.fit import fit
from scripts import text_sets
from scripts.text_sets import TOKENS
from scripts.tfidf import read_table

FILES_OF_A_TRY = 30  # of each package


class Setting(NamedTuple):
    """What a setting changes of the defaults: keys of the config, and factors on their values."""

    values: dict[str, Any]
    factors: dict[str, float]


THE_DEFAULTS = "the defaults"

OTHERS = {
    "half the rate": Setting({}, {"optimizer.lr": 0.5}),
    "twice the rate": Setting({}, {"optimizer.lr": 2}),
    "weight decay 0": Setting({"optimizer.weight_decay": 0.0}, {}),
    "weight decay 0.1": Setting({"optimizer.weight_decay": 0.1}, {}),
    "hidden size 64": Setting({"model.hidden_size": 64}, {}),
    "hidden size 256": Setting({"model.hidden_size": 256}, {}),
    "half the embedding": Setting({}, {"model.embedding_dim": 0.5}),
    "twice the embedding": Setting({}, {"model.embedding_dim": 2}),
    "embedding gain 1": Setting({"model.embedding_gain": 1.0}, {}),
    "half the batch": Setting({}, {"train.batch_size": 0.5}),
    "twice the batch": Setting({}, {"train.batch_size": 2}),
    "twice the epochs": Setting({}, {"train.max_epochs": 2}),
    "LSTM": Setting({"model.cell": "lstm"}, {}),
    "two directions": Setting({"model.bidirectional": True, "data.layout": "auto"}, {}),
    "pooling max": Setting({"model.pooling": "max"}, {}),
    "no skip": Setting({"model.skip": False}, {}),
    "no n-grams": Setting({"model.ngrams": []}, {}),
    "n-grams 2 and 3": Setting({"model.ngrams": [2, 3], "model.ngram_dropout": 0.3}, {}),
    "no dropout": Setting(
        {"model.ngram_dropout": 0.0, "model.head_dropout": 0.0, "data.token_dropout": 0.0}, {}
    ),
    "more dropout": Setting(
        {"model.ngram_dropout": 0.5, "model.head_dropout": 0.5, "data.token_dropout": 0.2}, {}
    ),
}

COLUMNS = ["set", "setting", "seed", "accuracy", "macro_f1", "step", "steps", "test", "seconds"]
Result = dict[str, str]


def make_sets(folder: Path, quick: bool) -> None:
    """Write the sets into folders of their names, unless they are there."""
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        text_sets.main(making, FILES_OF_A_TRY if quick else text_sets.MOST_FILES)
        making.rename(folder)


def config_of(name: str, folder: Path, setting: Setting, seed: int, quick: bool) -> Config:
    """Return the config of a run: what `rnncls train FILE` makes of the file, and the setting."""
    raw = guess_config(str(folder / "train.csv"), tokens=TOKENS[name]).raw
    raw["data"] |= {split: str(folder / f"{split}.csv") for split in ("val", "test")}
    raw["train"]["baseline"] = "none"
    raw["seed"] = seed
    values = dict(setting.values)
    for key, factor in setting.factors.items():
        section, _, leaf = key.partition(".")
        value = factor * raw[section][leaf]
        values[key] = value if key == "optimizer.lr" else max(1, int(value))

    if quick:
        values |= {"train.max_steps": 10, "train.max_epochs": None, "train.eval_every": 5}
    return load_config(raw, values)


def measure(config: Config, run_dir: Path, with_test: bool) -> Result:
    """Train, and return the metrics of the best evaluation; those of the test set on request."""
    # What an interrupted run has left.
    shutil.rmtree(run_dir, ignore_errors=True)

    started_at = time.process_time()
    fit(config, run_dir)
    seconds = time.process_time() - started_at

    rows = [row for row in read_metrics(run_dir) if "val/accuracy" in row]
    best = max(rows, key=lambda row: row["val/accuracy"])
    test = ""
    if with_test:
        checkpoint, model = load_checkpoint(run_dir)
        test = f"{evaluate(model, checkpoint.config).accuracy:.4f}"

    return {
        "accuracy": f"{best['val/accuracy']:.4f}",
        "macro_f1": f"{best['val/macro_f1']:.4f}",
        "step": str(best["step"]),
        "steps": str(rows[-1]["step"]),
        "test": test,
        "seconds": f"{seconds:.0f}",
    }


def read_results(path: Path) -> list[Result]:
    """Return the lines of results.tsv, which is made if it is not there."""
    if not path.exists():
        path.write_text("\t".join(COLUMNS) + "\n")
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def table(data: Path, results: list[Result]) -> str:
    """Return the table of docs/data.md. Accuracies are means over the seeds of a setting."""
    lines = ["| set | rows | classes | mean length | majority | defaults | best of twenty | test |"]
    lines.append("|---" * 8 + "|")
    for name in TOKENS:
        means = accuracies(name, results)
        if THE_DEFAULTS not in means or not OTHERS.keys() & means.keys():
            continue

        best = max(OTHERS.keys() & means.keys(), key=lambda setting: means[setting])
        tests = [float(result["test"]) for result in of_setting(name, THE_DEFAULTS, results)]
        lines.append(
            f"| {described(name, data / name)} | {means[THE_DEFAULTS]:.2%} "
            f"| {means[best]:.2%}, {best} | {mean(tests):.2%} |"
        )

    for name in TOKENS:
        lines.append("")
        means = accuracies(name, results)
        lines += [f"{name}: {setting}: {value:.2%}" for setting, value in means.items()]
    return "\n".join(lines)


def of_setting(name: str, setting: str, results: list[Result]) -> list[Result]:
    """Return the results of one setting on one set."""
    return [each for each in results if each["set"] == name and each["setting"] == setting]


def accuracies(name: str, results: list[Result]) -> dict[str, float]:
    """Return the mean validation accuracy of each setting that was measured on a set."""
    found = {}
    for setting in (THE_DEFAULTS, *OTHERS):
        values = [float(each["accuracy"]) for each in of_setting(name, setting, results)]
        if values:
            found[setting] = mean(values)
    return found


def described(name: str, folder: Path) -> str:
    """Return what a set is, as cells of the table; the majority class is that of validation."""
    texts, labels = read_table(folder / "train.csv")
    by_letter = TOKENS[name] == "characters"
    lengths = [len(text if by_letter else text.split()) for text in texts]
    classes = Counter(read_table(folder / "val.csv")[1])
    majority = max(classes.values()) / classes.total()
    return f"{name} | {len(lengths):,} | {len(set(labels))} | {mean(lengths):.0f} | {majority:.2%}"


def main(
    output: Annotated[Path, typer.Option()] = Path("runs/defaults"),
    only: Annotated[str, typer.Option("--set", help="One set instead of all.")] = "",
    seeds: Annotated[str, typer.Option()] = "0",
    quick: Annotated[bool, typer.Option(help="Small sets, 10 steps a run, two settings.")] = False,
) -> None:
    """Make the sets, train every setting that has no result yet, and print the table."""
    # Results of a quick try are no results.
    if quick:
        output = output / "quick"

    data = output / "data"
    make_sets(data, quick)
    path = output / "results.tsv"
    results = read_results(path)

    settings = {THE_DEFAULTS: Setting({}, {}), **OTHERS}
    if quick:
        settings = {name: settings[name] for name in (THE_DEFAULTS, "hidden size 64")}

    for setting, changed in settings.items():
        for name in [only] if only else TOKENS:
            for seed in parse_seeds(seeds):
                same = of_setting(name, setting, results)
                if any(result["seed"] == str(seed) for result in same):
                    continue

                config = config_of(name, data / name, changed, seed, quick)
                run_dir = output / name / f"{setting.replace(' ', '-')}_{seed}"
                found = measure(config, run_dir, with_test=setting == THE_DEFAULTS)
                result = {"set": name, "setting": setting, "seed": str(seed), **found}
                with path.open("a") as file:
                    file.write("\t".join(result[column] for column in COLUMNS) + "\n")
                results.append(result)
                print(f"{name}: {setting}, seed {seed}: {result['accuracy']}", flush=True)

    print(table(data, results))


if __name__ == "__main__":
    typer.run(main)
