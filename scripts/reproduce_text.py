"""Write docs/results/text.md: recurrent networks beside the simple baseline, on real sets.

    pip install -e '.[dev,bench,text]'
    python -m scripts.reproduce_text                          everything
    python -m scripts.reproduce_text --only texts --seeds 0-1   some of it
    python -m scripts.reproduce_text --page                   runs nothing
    python -m scripts.reproduce_text --check                  writes nothing: is the page right?
    python -m scripts.reproduce_text --short                  small sets and few steps, as a test;
                                                              all of it is below runs/short_text

The sets are those of scripts/text_sets.py, and the baseline that of scripts/tfidf.py. Each run is
what `rnncls train FILE` makes of the training file, with another cell and another seed; its best
checkpoint by validation answers the test file. What a set came to is kept as
docs/results/text/NAME.json after every run, so the command can be stopped and given again: what is
kept is not trained again, but for runs that have failed. Nothing in the page is typed by hand.
"""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import t

from rnncls.config.ranges import parse_seeds
from rnncls.evaluation.mcnemar import mcnemar
from rnncls.system.files import write_atomically
from rnncls.system.streams import say
from rnncls.training.control import NGRAMS
from scripts import text_sets, tfidf
from scripts.reproduce.running import machine
from scripts.source_lines import SPLITS
from scripts.text_sets import TOKENS

SHORT_OUT = Path("runs/short_text")
SHORT = ["train.max_steps=20", "train.max_epochs=null", "train.eval_every=10"]
SHORT += ["schedule.warmup_steps=5", "model.hidden_size=16"]

# What is trained: its name in the page, and what it changes.
WAYS = {
    "n-gram control": "model.cell=none",
    "GRU": "model.cell=gru",
    "LSTM": "model.cell=lstm",
}
MARKED_P = 0.05

HEAD = """# Real text

Written by `python -m scripts.reproduce_text`; nothing is typed by hand. Each run is what
`rnncls train FILE` makes of the training file, with another cell and seed; the n-gram control is
the same model without recurrence. The checkpoint with the best validation answers the test file,
once. TF-IDF of n-grams with logistic regression is chosen on validation, too
(`scripts/tfidf.py`), and has no seed.

Accuracies and macro-F1 are those of the test file, in per cent. Intervals are 95 %: of a mean over
seeds by Student's t, which says how much the seed matters; of TF-IDF Wilson's, which says how
much the choice of test sequences matters. The last column counts the seeds with which a run is
better than TF-IDF, no different, or worse, by McNemar's exact test on the test sequences at
p < {p}. Failed runs have no accuracy and are counted. Seconds are of one processor, for one run
with its evaluation on the test file; of TF-IDF, for the setting that was chosen.
"""


class Kept(BaseModel):
    """A part of a result file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KeptRun(Kept):
    """What a run came to; without accuracy, it has failed."""

    seed: int
    exit_code: int
    accuracy: float | None = None
    macro_f1: float | None = None
    better: int | None = None  # test sequences that it alone has right, and not TF-IDF
    worse: int | None = None
    seconds: float


class KeptTfidf(Kept):
    """What the baseline came to."""

    way: str
    strength: float
    accuracy: float
    low: float
    high: float
    macro_f1: float
    seconds: float


class Result(Kept):
    """The content of docs/results/text/NAME.json."""

    tokens: str
    rows: dict[str, int]  # of each split
    classes: int
    majority: float  # share of the test sequences that are of the largest class
    tfidf: KeptTfidf
    runs: dict[str, list[KeptRun]]
    machine: str


# --- running


def measure_set(name: str, folder: Path, out: Path) -> Result:
    """Describe a set and measure the baseline, without any run."""
    found = tfidf.measure(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "tfidf.json", json.dumps(found._asdict()).encode())

    tables = {split: tfidf.read_table(folder / f"{split}.csv") for split in SPLITS}
    test_labels = tables["test"][1]
    most = max(test_labels.count(label) for label in set(test_labels))
    return Result(
        tokens=TOKENS[name],
        rows={split: len(texts) for split, (texts, _) in tables.items()},
        classes=len(set(tables["train"][1])),
        majority=most / len(test_labels),
        tfidf=KeptTfidf(**{key: getattr(found, key) for key in KeptTfidf.model_fields}),
        runs={},
        machine=machine(),
    )


def train(name: str, folder: Path, way: str, seed: int, out: Path, short: bool) -> KeptRun:
    """Train and answer the test file."""
    run_dir = out / way.replace(" ", "-") / str(seed)
    shutil.rmtree(run_dir, ignore_errors=True)  # what an interrupted run has left

    command = ["train", str(folder / "train.csv"), "--tokens", TOKENS[name]]
    command += [f"data.{split}={(folder / f'{split}.csv').resolve()}" for split in ("val", "test")]
    command += [WAYS[way], f"seed={seed}", "train.baseline=none", "--run-dir", str(run_dir)]
    if way == "n-gram control" and TOKENS[name] == "ids":
        # The model has none; its control does.
        command += [f"model.ngrams={list(NGRAMS)}"]
    if short:
        command += SHORT

    before = child_seconds()
    exit_code, _ = rnncls(command)
    if exit_code:
        return KeptRun(seed=seed, exit_code=exit_code, seconds=child_seconds() - before)

    answers = run_dir / "test.jsonl"
    exit_code, text = rnncls(["eval", str(run_dir), "--json", "--predictions", str(answers)])
    seconds = round(child_seconds() - before, 1)
    if exit_code:
        return KeptRun(seed=seed, exit_code=exit_code, seconds=seconds)

    found = json.loads(text)
    other = json.loads((out / "tfidf.json").read_text())["predictions"]
    better, worse = compared(answers, other)
    return KeptRun(
        seed=seed,
        exit_code=0,
        accuracy=found["accuracy"],
        macro_f1=found["macro_f1"],
        better=better,
        worse=worse,
        seconds=seconds,
    )


def rnncls(words: list[str]) -> tuple[int, str]:
    """Run a command to its end; return its exit code and its stdout."""
    command = [sys.executable, "-P", "-m", "rnncls", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stdout


def child_seconds() -> float:
    """Return the seconds of processors that ended child processes have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def compared(answers: Path, other: list[str]) -> tuple[int, int]:
    """Return how many sequences only a run has right, and how many only other predictions."""
    lines = answers.read_text(encoding="utf-8").split("\n")
    rows = sorted((json.loads(line) for line in lines if line), key=lambda row: row["line"])

    better = 0
    worse = 0
    for row, predicted in zip(rows, other, strict=True):
        right = row["true"] == row["predicted"]
        other_right = str(row["true"]) == predicted
        better += right and not other_right
        worse += other_right and not right
    return better, worse


# --- what is kept


def read_result(path: Path) -> Result | None:
    """Return what is kept of a set; None if nothing is.

    Raises: ValueError if a file is no result.
    """
    if not path.exists():
        return None
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"]))
        raise ValueError(f"{path}: no result of a set: {place}: {detail['msg']}") from None


def read_results(folder: Path) -> dict[str, Result]:
    """Return the results in a folder, in the order of the sets. Raises: ValueError."""
    found = {name: read_result(folder / f"{name}.json") for name in TOKENS}
    return {name: result for name, result in found.items() if result}


def renewed(kept: Result | None, measured: Result) -> Result:
    """Return a result that was measured anew, with the runs that are kept, if they are of this set.

    Other versions of the packages make other sets.
    """
    if kept is None or (kept.rows, kept.majority) != (measured.rows, measured.majority):
        return measured
    return measured.model_copy(update={"runs": kept.runs})


def with_run(result: Result, way: str, run: KeptRun) -> Result:
    """Return a result with one more run, in the place of one with the same seed."""
    others = [each for each in result.runs.get(way, []) if each.seed != run.seed]
    runs = sorted([*others, run], key=lambda each: each.seed)
    unsorted = {**result.runs, way: runs}
    ordered = {each: unsorted[each] for each in WAYS if each in unsorted}
    return result.model_copy(update={"runs": ordered})


def has_run(result: Result, way: str, seed: int) -> bool:
    """Tell whether a run is kept that has not failed."""
    runs = result.runs.get(way, [])
    return any(run.seed == seed and run.accuracy is not None for run in runs)


# --- the page


def page(results: dict[str, Result]) -> str:
    """Return docs/results/text.md."""
    lines = [*HEAD.format(p=MARKED_P).splitlines()]
    for name, result in results.items():
        rows = " / ".join(f"{count:,}" for count in result.rows.values())
        lines += ["", f"## {name}", ""]
        lines += [f"{result.tokens}, {result.classes} classes, {rows} rows (train / val / test)."]
        lines += [f"The largest class has {result.majority:.2%} of the test file.", ""]

        columns = "| | runs | failed | accuracy | macro-F1 | points to TF-IDF | seconds "
        lines += [f"{columns}| better / alike / worse |", "|---" * 8 + "|", tfidf_row(result.tfidf)]
        lines += [row_of(way, runs, result.tfidf) for way, runs in result.runs.items()]
        lines += ["", f"On {result.machine}."]
    return "\n".join(lines) + "\n"


def tfidf_row(found: KeptTfidf) -> str:
    """Return the row of the baseline."""
    score = f"{100 * found.accuracy:.2f} ({100 * found.low:.2f} to {100 * found.high:.2f})"
    way = f"TF-IDF, {found.way}, C = {found.strength:g}"
    return f"| {way} | 1 | 0 | {score} | {100 * found.macro_f1:.2f} | | {found.seconds:.0f} | |"


def row_of(way: str, runs: list[KeptRun], baseline: KeptTfidf) -> str:
    """Return the row of some runs that differ in their seed alone."""
    failed = sum(run.accuracy is None for run in runs)
    accuracies = [100 * run.accuracy for run in runs if run.accuracy is not None]
    scores = [100 * run.macro_f1 for run in runs if run.macro_f1 is not None]
    if not accuracies:
        return f"| {way} | {len(runs)} | {failed} | | | | | |"

    points = f"{mean(accuracies) - 100 * baseline.accuracy:+.2f}"
    seconds = f"{mean(run.seconds for run in runs if run.accuracy is not None):.0f}"
    cells = [way, str(len(runs)), str(failed), with_interval(accuracies), with_interval(scores)]
    return f"| {' | '.join([*cells, points, seconds, verdicts(runs)])} |"


def with_interval(values: list[float]) -> str:
    """Return the mean and its 95 % interval by Student's t; the mean alone of one value."""
    centre = mean(values)
    if len(values) == 1:
        return f"{centre:.2f}"

    radius = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{centre:.2f} ± {radius:.2f}"


def verdicts(runs: list[KeptRun]) -> str:
    """Return how many runs are better than the baseline, no different, and worse."""
    counts = [0, 0, 0]
    for run in runs:
        if run.better is None or run.worse is None:
            continue

        p = mcnemar(run.better, run.worse)
        if p >= MARKED_P:
            counts[1] += 1
        else:
            counts[0 if run.better > run.worse else 2] += 1
    return " / ".join(map(str, counts))


# --- the command


def named(only: str) -> list[str]:
    """Return the names of sets in a list such as "texts,code". Raises: ValueError."""
    names = only.split(",") if only else list(TOKENS)
    for name in names:
        if name not in TOKENS:
            raise ValueError(f"no set {name!r}; there are {', '.join(TOKENS)}")
    return names


def reproduce(
    names: list[str], seeds: list[int], sets: Path, out: Path, results: Path, short: bool
) -> None:
    """Measure what is not kept of some sets, and keep it."""
    results.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = results / f"{name}.json"
        result = read_result(path)
        if result is None or not (out / name / "tfidf.json").exists():
            result = renewed(result, measure_set(name, sets / name, out / name))
            keep(path, result)
            say(f"{name}: TF-IDF: {result.tfidf.accuracy:.4f}")

        for seed in seeds:
            for way in WAYS:
                if has_run(result, way, seed):
                    continue
                run = train(name, sets / name, way, seed, out / name, short)
                result = with_run(result, way, run)
                keep(path, result)
                failed = f"failed with exit code {run.exit_code}"
                came_to = failed if run.accuracy is None else f"{run.accuracy:.4f}"
                say(f"{name}: {way}, seed {seed}: {came_to}")


def keep(path: Path, result: Result) -> None:
    """Write a result. Raises: OSError."""
    write_atomically(path, (result.model_dump_json(indent=1) + "\n").encode())


def main(
    only: Annotated[str, typer.Option(help="Names of sets, with commas.")] = "",
    seeds: Annotated[str, typer.Option()] = "0-4",
    page_only: Annotated[bool, typer.Option("--page", help="Only write the page.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing.")] = False,
    short: Annotated[bool, typer.Option("--short", help="Small sets, few steps.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where sets and runs are kept.")] = None,
    results: Annotated[Path | None, typer.Option(help="Where the JSON files are kept.")] = None,
    output: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
) -> None:
    """Measure what is not kept, and write the page."""
    out = out or (SHORT_OUT if short else Path("runs/text"))
    results = results or (SHORT_OUT / "json" if short else Path("docs/results/text"))
    output = output or (SHORT_OUT / "text.md" if short else Path("docs/results/text.md"))

    try:
        names = named(only)
        kept = read_results(results)  # a bad file is found before hours of training
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None

    if check:
        if not output.exists() or page(kept) != output.read_text(encoding="utf-8"):
            say(f"{output} is not what {results} gives: python -m scripts.reproduce_text --page")
            raise typer.Exit(1)
        return

    if not page_only:
        sets = out / "sets"
        if not sets.exists():
            making = out / f"sets.{os.getpid()}"
            text_sets.main(making, 30 if short else text_sets.MOST_FILES)
            making.rename(sets)
        reproduce(names, list(parse_seeds(seeds)), sets, out, results, short)

    write_atomically(output, page(read_results(results)).encode())
    print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
