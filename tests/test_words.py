"""What the command line understands, and what it says about what it does not."""

import inspect
import json
import os
import pty
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rnncls.cli.app import app
from rnncls.cli.command import Command, kind_of, name_of
from rnncls.cli.words import Words, sort_words
from rnncls.config import load_config
from rnncls.config.names import ALIASES, advice, known_keys, meant_keys
from rnncls.errors import ConfigError
from tests.helpers import PYTHON, ROOT, SAFETY_S, run_process, run_python, run_rnncls, started

RED = "\x1b[1;31m"
YELLOW = "\x1b[33m"
PLAIN = "\x1b[0m"

SMOKE = "configs/smoke.yaml"


def error_of(*words: str | Path, cwd: Path | None = None) -> str:
    """Return what a command line with an error in it is told."""
    done = run_rnncls(*words, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("rnncls: error[") == 1
    return done.stderr


# --- words: configs, data files, overrides


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty working directory with a few files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "run").mkdir()
    for name in (
        "run/config.yaml",
        "mine.yaml",
        "clicks.csv",
        "notes",
        "lr=1.csv",
        "configs/smoke.yaml",
    ):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mine.yaml", "lr=1"], Words(Path("mine.yaml"), None, ["lr=1"])),
        (["missing.YML"], Words(Path("missing.YML"), None, [])),
        (["clicks.csv"], Words(None, Path("clicks.csv"), [])),
        (["missing.jsonl.gz", "a.b=c"], Words(None, Path("missing.jsonl.gz"), ["a.b=c"])),
        (["notes"], Words(None, Path("notes"), [])),
        (["data.train=clicks.csv"], Words(None, None, ["data.train=clicks.csv"])),
        (["data.train=x.yaml"], Words(None, None, ["data.train=x.yaml"])),
        (["lr=1.csv"], Words(None, Path("lr=1.csv"), [])),
        ([], Words(None, None, [])),
        (None, Words(None, None, [])),
    ],
)
def test_words_are_sorted(words: list[str] | None, expected: Words) -> None:
    assert sort_words(None, words) == expected


@pytest.mark.row("C17")
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("config", "words", "parts"),
    [
        ("mine.yaml", ["other.yaml"], ["two files", "--config mine.yaml, other.yaml"]),
        ("mine.yaml", ["clicks.csv"], ["two files", "clicks.csv"]),
        (None, ["mine.yaml", "clicks.csv"], ["two files", "mine.yaml, clicks.csv"]),
        (None, ["a=1", "mine.yaml"], ["a file behind an override", "file first: mine.yaml a=1"]),
        (None, ["smoke"], ["a config (.yaml)", "did you mean configs/smoke.yaml?"]),
        (None, ["clicks.cvs"], ["(.jsonl, .csv or .tsv)", "did you mean clicks.csv?"]),
        (None, ["configs"], ["configs (a folder)"]),
        (None, ["run"], ["run (a folder)", "did you mean run/config.yaml?"]),
        (None, [""], ['found:    "", nothing']),
        (None, ["mine.yaml", " "], ['found:    " ", nothing']),
        (None, ["n" * 300], ["neither a file nor an override"]),
        (None, ["mine.yaml", "lr"], ["malformed override", "section.key=value"]),
        ("mine.yaml", ["lr"], ["malformed override", "section.key=value"]),
    ],
)
def test_words_that_are_refused(config: str | None, words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        sort_words(None if config is None else Path(config), words)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].id == "C17"
    for part in parts:
        assert part in caught.value.render()


def test_a_config_may_be_the_first_word() -> None:
    for command in (["config", "show"], ["data", "sample"]):
        by_option = run_rnncls(*command, "--config", SMOKE, "train.batch_size=3")
        by_word = run_rnncls(*command, SMOKE, "train.batch_size=3")
        assert by_option.stdout
        assert by_word.stdout == by_option.stdout
    assert run_rnncls("config", "check", SMOKE).stdout.startswith(f"{SMOKE}: ok")


def test_a_sweep_takes_a_config_as_first_word(tmp_path: Path) -> None:
    words = ["train.max_steps=2", "--seeds", "0", "--sweep-dir", str(tmp_path / "sweep")]
    # Compiling takes seconds, of which nothing is tested here.
    words += ["train.engine=eager"]
    done = run_rnncls("sweep", SMOKE, "optimizer.lr=1e-3,2e-3", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 of 1 runs finished") == 2


@pytest.mark.row("C17")
def test_a_data_file_where_a_config_belongs_is_refused_with_advice(tmp_path: Path) -> None:
    for command in (["config", "check"], ["sweep"]):
        message = error_of(*command, "clicks.csv", cwd=tmp_path)
        assert "rnncls init clicks.csv > clicks.yaml" in message


@pytest.mark.row("C17")
def test_no_config_is_said_by_every_command_that_needs_one() -> None:
    for command in (["config", "show"], ["config", "check"], ["data", "check"], ["data", "sample"]):
        assert "configs/smoke.yaml" in error_of(*command)
    assert "pass a config or --resume" in error_of("sweep")


# --- names


def test_every_other_name_stands_for_a_key_and_hides_none() -> None:
    keys = known_keys()
    leaves = {key.rpartition(".")[2] for key in keys}
    for name, key in ALIASES.items():
        assert key in keys
        # The keys of this name would be found first: the entry would be without effect.
        assert name not in leaves
        assert meant_keys(name) == [key]


NAMES = [
    ("modulus", "7", "data.modulus=7"),
    ("lr", "1e-3", "optimizer.lr=1e-3"),
    ("learning_rate", "1e-3", "optimizer.lr=1e-3"),
    ("early_stopping", "5", "train.patience=5"),
    ("early_stopping", "true", "train.patience=5"),
    ("N", "7", "data.modulus=7"),
    ("units", "8", "model.hidden_size=8"),
    ("num_hidden", "8", "model.hidden_size=8"),
    ("batch", "8", "train.batch_size=8"),
    ("batch-size", "8", "train.batch_size=8"),
    ("gpu", "0", "device=cuda:0"),
    ("gpu", "true", "device=cuda"),
    ("cuda", "false", "device=cpu"),
    ("epochs", "10", "train.max_steps=5000"),
    ("train.lr", "1", "optimizer.lr=1"),
    ("model.learning_rate", "1", "optimizer.lr=1"),
    ("optim.lr", "1", "optimizer.lr=1"),
    ("train.warmup_steps", "9", "schedule.warmup_steps=9"),
    ("lrr", "1", "optimizer.lr=1"),
    ("train.max_stepps", "4", "train.max_steps=4"),
    ("seeed", "4", "seed=4"),
    ("optimizer", "adam", "optimizer.name=adam"),
    ("model", "lstm", "model.cell=lstm"),
    ("max_length", "9", "data.max_length=9"),
    ("name", "adam", "optimizer.name=adam, or schedule.name=adam"),
    ("betas", "[0.9, 0.99]", "'optimizer.betas=[0.9, 0.99]'"),
    # Of scikit-learn, Keras, Hugging Face and fastai.
    ("solver", "adam", "optimizer.name=adam"),
    ("learning_rate_init", "1e-3", "optimizer.lr=1e-3"),
    ("n_iter_no_change", "5", "train.patience=5"),
    ("clipnorm", "1.0", "train.max_grad_norm=1.0"),
    ("per_device_train_batch_size", "16", "train.batch_size=16"),
    ("lr_scheduler_type", "linear", "schedule.name=linear"),
    ("adam_epsilon", "1e-8", "optimizer.eps=1e-8"),
    ("lr_max", "1e-3", "optimizer.lr=1e-3"),
    ("emb_sz", "16", "model.embedding_dim=16"),
    # Of Lightning, AWD-LSTM and Keras.
    ("truncated_bptt_steps", "35", "train.truncate_after=35"),
    ("bptt", "35", "train.truncate_after=35"),
    ("gradient_checkpointing", "true", "train.recompute_every=100"),
    ("gradient_checkpointing", "false", "train.recompute_every=null"),
    ("pool", "max", "model.pooling=max"),
    ("trainable_h0", "true", "model.initial_state=learned"),
    ("h_0", "zeros", "model.initial_state=zeros"),
    ("prefix_loss", "true", "train.objective=prefix"),
    ("many_to_many", "false", "train.objective=sequence"),
]


@pytest.mark.row("C5", "C9")
@pytest.mark.parametrize(("name", "text", "meant"), NAMES)
def test_another_name_is_refused_with_the_whole_override(name: str, text: str, meant: str) -> None:
    message = error_of("config", "check", SMOKE, f"{name.replace('-', '_')}={text}")
    assert f"did you mean {meant}?" in message


@pytest.mark.parametrize(
    ("name", "text", "meant"), [case for case in NAMES if case[0] not in ("name", "gpu")]
)
def test_the_override_to_paste_works(name: str, text: str, meant: str) -> None:
    overrides = shlex.split(meant)
    assert "=" in overrides[0]
    load_config(ROOT / SMOKE, [*overrides, "schedule.min_lr=0"])
    assert meant in advice(name, text, "sum_mod")


@pytest.mark.row("C5")
@pytest.mark.parametrize(
    ("name", "instead", "similar"),
    [
        ("vocab_size", "the data says how many tokens there are", "batch_size"),
        ("output_dir", "--run-dir DIRECTORY", ""),
        ("world_size", "torchrun --standalone", ""),
        ("nproc_per_node", "-m rnncls train", ""),
        ("devices", "which starts N processes", "device="),
        ("backend", "gloo between CPUs", "data.bad"),
        ("dist_timeout", "--dist-timeout SECONDS", ""),
        ("log_dir", "--run-dir DIRECTORY", "log_every"),
        ("recurrent_dropout", "model.dropout, which acts between layers", "recurrent_init"),
        ("warmup_ratio", "a number of steps", ""),
        ("seeds", "rnncls sweep, which has --seeds and --grid", "did you mean seed?"),
        ("beta_1", "'optimizer.betas=[0.9, 0.999]'", "=1"),
        ("return_sequences", "train.objective=prefix, which trains on a label", "truncate"),
        ("stateful", "no state is carried between batches", "initial_state"),
    ],
)
def test_names_without_a_key_get_what_there_is_and_no_key_that_is_spelt_alike(
    name: str, instead: str, similar: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / SMOKE, [f"{name}=1"])
    remedy = caught.value.problems[0].remedy
    assert instead in remedy
    assert not similar or similar not in remedy
    with pytest.raises(ConfigError) as caught:
        load_config({name: 1})
    assert caught.value.problems[0].remedy == remedy


@pytest.mark.row("C9")
@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("model.cell=LSTM", "lstm"),
        ("device=gpu", "cuda, or cuda:INDEX for one of several"),
        ("train.patience=None", "null"),
        ("train.batch_size=none", ""),
        ("optimizer.lr=1e-3,2e-3", "one value; rnncls sweep tries several"),
        ("optimizer.lr=[1e-3, 2e-3]", "one value; rnncls sweep tries several"),
        ("train.max_steps=12,000", "12000"),
    ],
)
def test_a_bad_value_is_recognised(override: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / SMOKE, [override])
    assert caught.value.problems[0].remedy == remedy


@pytest.mark.row("C5")
def test_epochs_and_keys_of_files(tmp_path: Path) -> None:
    (tmp_path / "files.yaml").write_text("data: {source: files, train: x.csv}\n")
    message = error_of("config", "check", tmp_path / "files.yaml", "epochs=10")
    assert "did you mean train.max_epochs=10?\n" in message
    message = error_of("config", "check", SMOKE, "tokenizer=words")
    assert "did you mean data.tokens=words? It needs data.source=files" in message
    message = error_of("config", "check", SMOKE, "data=x.csv")
    assert "did you mean data.source=files data.train=x.csv?" in message
    message = error_of("config", "check", tmp_path / "files.yaml", "modulus=3")
    assert "did you mean data.modulus=3? It needs data.source=sum_mod" in message


@pytest.mark.row("C5")
@pytest.mark.parametrize(
    ("text", "meant", "in_file"),
    [
        ("lr: 1e-3", "optimizer.lr", "optimizer: {lr: 0.001}"),
        ("optimizer.lr: 1e-3", "optimizer.lr", "optimizer: {lr: 0.001}"),
        ("train: {lr: 1}", "optimizer.lr", "optimizer: {lr: 1}"),
        ("gpu: 0", "device", "device: cuda:0"),
        ("early_stopping: true", "train.patience", "train: {patience: 5}"),
        ("model: lstm", "model.cell", "model: {cell: lstm}"),
        ("optim: {lr: 1}", "optimizer", ""),
        ("hyper: {lr: 1, eps: 2}", "optimizer", ""),
        ("seeed: 1", "seed", ""),
        ("name: adam", "optimizer.name, or schedule.name", ""),
    ],
)
def test_another_name_in_a_file(tmp_path: Path, text: str, meant: str, in_file: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"{text}\n")
    message = error_of("config", "check", path)
    assert f"did you mean {meant}?" in message
    assert ("In a file: " in message) == bool(in_file)
    if in_file:
        assert f"In a file: {in_file}\n" in message
        path.write_text(f"{in_file}\nschedule: {{min_lr: 0}}\n")
        load_config(path)


@pytest.mark.row("C5", "C17")
@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["train", "--lr", "1e-3"], "optimizer.lr=1e-3"),
        (["train", "--lr=1e-3"], "optimizer.lr=1e-3"),
        (["config", "show", SMOKE, "--batch-size", "32"], "train.batch_size=32"),
        (["train", "--epochs", "5"], "train.max_epochs=5"),
        (["train", "--gpu", SMOKE], "device=cuda"),
        (["train", "--gpu", "clicks.csv"], "device=cuda"),
        (["train", "--gpu", "1"], "device=cuda:1"),
        (["train", "--bidirectional"], "model.bidirectional=true"),
        (["train", "--conifg", "x"], "--config"),
        (["sweep", "--seed", "3"], "--seeds"),
        (["sweep", SMOKE, "--grid", "lr=1,2"], "--grid optimizer.lr=1,2"),
        (["sweep", SMOKE, "lr=1,2"], "optimizer.lr=1,2"),
        (["sweep", SMOKE, "lr=1"], "optimizer.lr=1"),
    ],
)
def test_another_name_as_an_option(words: list[str], meant: str) -> None:
    assert f"did you mean {meant}?" in error_of(*words)


def test_no_key_is_advised_where_a_command_takes_none() -> None:
    assert "data." not in error_of("eval", "run", "--bad", "skip")


@pytest.mark.row("C17")
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["trian"], "did you mean rnncls train?"),
        (["config", "shw"], "did you mean rnncls config show?"),
        (["clicks.csv"], "did you mean rnncls train clicks.csv?"),
        ([SMOKE], f"did you mean rnncls train {SMOKE}?"),
        (["nonsense"], ""),
        (["it's"], ""),
    ],
)
def test_a_word_where_a_command_belongs(words: list[str], remedy: str) -> None:
    message = error_of(*words)
    assert f"no such command: {words[-1]}\n  expected: one of " in message
    assert ("try: " in message) == bool(remedy)
    assert remedy in message


def test_an_option_without_a_key_gets_no_wrong_advice() -> None:
    assert "try:" not in error_of("eval", "x", "--lr", "1")
    assert "rnncls --debug eval" in run_rnncls("eval", "x", "--debug").stderr


# --- repeated options


@pytest.mark.row("C17")
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["config", "show", "--config", "a.yaml", "-c", "b.yaml"], "--config"),
        (["sweep", SMOKE, "--seeds", "0", "--seeds=1"], "--seeds"),
        (["train", "--run-dir", "a", "--config", SMOKE, "--run-dir", "a"], "--run-dir"),
    ],
)
def test_an_option_given_twice_is_refused(words: list[str], name: str) -> None:
    assert f"{name} was given 2 times" in error_of(*words)


def test_flags_and_axes_may_be_repeated(tmp_path: Path) -> None:
    assert run_rnncls("config", "show", SMOKE, "--json", "--json").returncode == 0
    words = ["--seeds", "0", "--sweep-dir", str(tmp_path / "sweep"), "train.max_steps=1"]
    words += ["train.engine=eager"]
    axes = ["--grid", "optimizer.lr=1e-3,2e-3", "--grid", "train.batch_size=2,3"]
    done = run_rnncls("sweep", SMOKE, *axes, *words, "--json")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "sweep").glob("*/*/config.yaml"))) == 4


# --- help


def commands() -> Iterator[tuple[list[str], Any]]:
    """Yield every command and group that there is, as words and as typer knows it."""

    def walk(words: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk([*words, name], inner)

    return walk([], typer.main.get_command(app))


COMMANDS = list(commands())

# What programmers write and users do not: types, ranges, regular expressions, typer's brackets.
INTERNAL = re.compile(
    r"\b(TEXT|PATH|INTEGER|INT|STR|BOOL|FLOAT)\b|RANGE|<[a-z\[\]|]+( range)?>|<=|>=|\blist\[|"
    r"\[0-9\]|\\[dw]|[$^]|\[default|\[required|None\b|pydantic|Input should|Traceback"
)


def test_there_are_commands() -> None:
    assert ["train"] in [words for words, _ in COMMANDS]
    assert ["runs", "diff"] in [words for words, _ in COMMANDS]
    kinds = {kind_of(param) for _, command in COMMANDS for param in command.params}
    assert kinds == {"whole number", "number", "file", "text"}


@pytest.mark.parametrize("words", [words for words, _ in COMMANDS], ids=" ".join)
def test_help_has_no_internal_words(words: list[str]) -> None:
    done = run_rnncls(*words, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {' '.join(['rnncls', *words])} ")
    assert INTERNAL.search(done.stdout) is None


@pytest.mark.parametrize(
    ("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS]
)
def test_messages_about_a_wrong_command_line_have_no_internal_words(
    words: list[str], command: Any
) -> None:
    # An unknown option, too many words, and each number with a wrong value and with none.
    lines = [["--nonsense"], ["--nonsense=1"], ["1"] * 9]
    for param in command.params:
        if kind_of(param).endswith("number"):
            lines += [[name_of(param), value] for value in ("-1", "x", "1.5", "1" * 99)]
            lines += [[name_of(param)]]

    for line in lines:
        done = run_rnncls(*words, *line)
        assert done.returncode in (2, 4), (line, done.stderr)
        assert INTERNAL.search(done.stderr) is None, done.stderr


def test_the_device_is_explained_in_words() -> None:
    message = error_of("config", "check", SMOKE, "device=gpu0")
    assert "expected: auto, cpu, cuda or cuda:INDEX\n" in message
    assert "cuda, or cuda:INDEX for one of several" in message


def examples() -> Iterator[tuple[str, str]]:
    """Yield (command, line) of every example in a --help."""
    for words, command in COMMANDS:
        if isinstance(command, Command):
            _, _, text = inspect.cleandoc(command.help or "").partition("\n\nExamples:\n")
            for line in inspect.cleandoc(text).splitlines():
                yield " ".join(words), line.strip()


def test_every_command_shows_an_example_of_itself() -> None:
    lines = list(examples())
    for words, command in COMMANDS:
        if isinstance(command, Command):
            name = " ".join(words)
            own = [line for of, line in lines if of == name]
            assert any(f"rnncls {name}" in line for line in own), name
            # The lines are shown as they are, none joined with the next or broken.
            shown = run_rnncls(*words, "--help").stdout.splitlines()
            assert {f"  {line}" for line in own} <= set(shown)
            assert max(map(len, shown)) <= 80


@pytest.mark.parametrize("line", [line for _, line in examples()])
def test_examples_name_files_that_exist_and_parse(line: str, tmp_path: Path) -> None:
    words = shlex.split(line.partition(" > ")[0].rpartition(" | ")[2])
    for word in words:
        if word.startswith(("configs/", "scripts/")):
            assert (ROOT / word).is_file(), word
    if words[0] != "rnncls":
        return

    # In a folder without files, so that nothing runs: what fails is a file that is not there.
    (tmp_path / "runs" / "sweep").mkdir(parents=True)
    # It needs no more than a folder, and would serve until it is ended.
    if words[1] == "board" and "--link" not in words:
        words.append("--link")
    done = run_rnncls(*words[1:], cwd=tmp_path)
    assert "Usage:" not in done.stderr
    assert "error[C17]" not in done.stderr


# --- completion


@pytest.fixture
def complete(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Give a function that asks as bash does, in a process in which importing torch fails.

    It takes lines, each a list of words, and returns the candidates for the last word of each.
    """
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')\n")
    code = """
import json, os, sys
from contextlib import suppress
from rnncls.cli import entry

for words in json.loads(sys.argv.pop()):
    os.environ["COMP_WORDS"] = " ".join(["rnncls", *words])
    os.environ["COMP_CWORD"] = str(len(words))
    with suppress(SystemExit):
        entry.run()
    print("end")
"""

    def ask(*lines: list[str]) -> list[list[str]]:
        env = {
            **os.environ,
            "PYTHONPATH": f"{tmp_path}:{ROOT}",
            "_RNNCLS_COMPLETE": "complete_bash",
        }
        done = run_python(code, json.dumps(lines), env=env)
        assert done.stderr == ""
        *answers, rest = done.stdout.split("end\n")
        assert rest == ""
        return [answer.split() for answer in answers]

    return ask


def test_completion(complete: Callable[..., list[list[str]]]) -> None:
    expected = {
        "": [words[0] for words, _ in COMMANDS if len(words) == 1],
        "runs d": ["diff"],
        "train --re": ["--resume"],
        "train optimizer.name=a": ["optimizer.name=adam", "optimizer.name=adamw"],
        # Bash makes three words of an override.
        "train optimizer.name = a": ["adam", "adamw"],
        # The others would be commands to the shell.
        "train data.separator=": ["data.separator=auto", "data.separator=tab"],
        "train model.bias=": ["model.bias=true", "model.bias=false"],
        # Two candidates: a shell would put a space behind a single one, where the value belongs.
        "train optimizer.l": ["optimizer.lr=", "optimizer.lr=0.002"],
        "train configs/sm": ["configs/smoke.yaml"],
        # The shell completes the names of other files.
        "train LICEN": [],
    }
    of_optimizer = [f"{key}=" for key in known_keys() if key.startswith("optimizer.")]
    for command in ("train", "data stats", "config check -c x.yaml", "sweep --grid"):
        expected[f"{command} optimizer."] = of_optimizer

    lines = [line.split(" ") for line in expected]
    answers = complete(*lines, ["config", "show", ""])
    assert answers[:-1] == list(expected.values())
    assert {"data.", "train.", "seed=", "device="} <= set(answers[-1])


@pytest.mark.slow
def test_bash_itself_completes(tmp_path: Path) -> None:
    script = run_process("--show-completion", env={**os.environ, "SHELL": "/bin/bash"})
    if script.returncode != 0 or "complete_bash" not in script.stdout:
        pytest.skip("no bash, or the shell of this process is unknown")
    (tmp_path / "rnncls").write_text(f'#!/bin/sh\nexec {PYTHON} -m rnncls "$@"\n')
    (tmp_path / "rnncls").chmod(0o755)
    code = """
COMP_WORDS=(rnncls config sh) COMP_CWORD=2
_rnncls_completion rnncls
echo "${COMPREPLY[@]}"
"""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with started(["bash", "-c", script.stdout + code], env=env, stdout=-1) as process:
        out, _ = process.communicate(timeout=SAFETY_S)
    assert out == "show\n"


# --- colour


def on_terminal(*command: str | Path, **environment: str) -> str:
    """Run a command with a terminal as stderr, and return what appears there."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", **environment}
    with started(command, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b"".join(_chunks(ours))
        process.wait(timeout=SAFETY_S)
    os.close(ours)
    return shown.decode()


def _chunks(descriptor: int) -> Iterator[bytes]:
    # When the last writer of a terminal is gone, Linux answers with an error and not with b"".
    try:
        while chunk := os.read(descriptor, 4096):
            yield chunk
    except OSError:
        return


@pytest.mark.slow
def test_errors_are_red_on_a_terminal_only_and_not_against_the_users_wish(tmp_path: Path) -> None:
    words = [PYTHON, "-m", "rnncls", "config", "check", str(tmp_path / "no.yaml")]
    assert on_terminal(*words, NO_COLOR="").startswith(f"{RED}rnncls: error[C1]{PLAIN}: cannot")
    for wish in ({"NO_COLOR": "1"}, {"NO_COLOR": "", "TERM": "dumb"}):
        assert on_terminal(*words, **wish).startswith("rnncls: error[C1]: cannot")
    assert run_process(*words[3:]).stderr.startswith("rnncls: error[C1]: cannot")


def test_warnings_are_yellow_on_a_terminal() -> None:
    code = """
import sys
from rnncls.system.streams import make_streams_lenient
make_streams_lenient()
print("before\\nrnncls: warning[D8]: rnncls: error", file=sys.stderr)
"""
    shown = on_terminal(PYTHON, "-c", code, NO_COLOR="")
    assert shown == f"before\r\n{YELLOW}rnncls: warning[D8]{PLAIN}: rnncls: error\r\n"
